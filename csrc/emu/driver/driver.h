/* A libcuda.so.1 whose GPU is the emulator: pycuda and quamba_edge's own calls run on it as they are.
 *
 * It holds its callers to the driver's rules and is as late as the driver may be: what is put into a stream runs when
 * somebody waits for it, so memory that is used again too early, or read too early, shows.  Kernels are those of the
 * cubin that is loaded: their names, the places of their arguments, registers and launch bounds come from its ELF.
 *
 * The environment variable QUAMBA_EMULATED_GPU has words such as "sm=87 driver=12060 memory=8000000000 integrated=1
 * early=1 log=FILE fail=cuMemAlloc_v2:2:5" (the fifth call of that function fails with 2). */
#pragma once
#include <cuda.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace quamba {
namespace driver {

using Work = std::function<void()>;

/* What may be asked for where: a call without a context, or an unsafe one while a graph is captured, fails. */
enum Rules : unsigned { ANYWHERE = 0, CONTEXT = 1, NOT_CAPTURED = 2 };

/* Counts the call and checks the rules; not 0: what the call must return. */
CUresult enter(const char* function, unsigned rules);
CUresult failed(const char* function, CUresult status, const std::string& why);
long setting(const char* name, long otherwise);

extern std::recursive_mutex everything;
#define QUAMBA_CALL(rules)                                                           \
    std::lock_guard<std::recursive_mutex> one_at_a_time(quamba::driver::everything); \
    if (CUresult bad = quamba::driver::enter(__func__, rules)) return bad
#define QUAMBA_FAIL(status, why) return quamba::driver::failed(__func__, status, why)

/* Streams (streams.cpp). */
CUresult post(const char* function, CUstream stream, Work work);
bool idle();    // nothing waits in any stream
void finish();  // run all that waits
bool capturing();  // on this thread
void spoil();      // the capture of this thread cannot be used
void forget_graphs();  // they go with their context

/* Memory (memory.cpp). */
bool device_range(CUdeviceptr start, size_t bytes);
size_t held();
void forget();  // all of it goes with its context

/* Cubins (cubin.cpp). */
struct Parameter {
    unsigned offset, size;
};
struct KernelFacts {
    std::vector<Parameter> parameters;
    unsigned bytes = 0, registers = 0, most_threads = 1024;
};
struct Cubin {
    unsigned sm = 0, toolkit = 0;  // 126 for CUDA 12.6, 130 for every 13
    std::map<std::string, KernelFacts> kernels;
};
bool read_cubin(Cubin& cubin, const void* image);  // false: it is none

}  // namespace driver
}  // namespace quamba
