/* The device, its context, modules and launches; what is counted and checked in every call. */
#include "driver.h"

#include <stdio.h>
#include <string.h>

#include <sstream>

#include "../emulator.h"

using namespace quamba::driver;

struct CUctx_st {
    int retained = 0;
};
struct CUmod_st {
    Cubin cubin;
};
struct CUfunc_st {
    std::string name;
    KernelFacts facts;
    const quamba::emu::Entry* entry;
    size_t shared = 48 << 10;
};

namespace quamba {
namespace driver {

std::recursive_mutex everything;

namespace {

bool initialized;
CUresult broken;
CUctx_st primary;
thread_local std::vector<CUcontext> contexts;
std::map<std::string, long> calls;
std::vector<std::string> complaints;

std::string word(const char* name) {
    const char* all = getenv("QUAMBA_EMULATED_GPU");
    std::istringstream words(all ? all : "");
    for (std::string one; words >> one;)
        if (!one.compare(0, strlen(name) + 1, std::string(name) + "=")) return one.substr(strlen(name) + 1);
    return "";
}

/* At the end of the process: calls by name, what went wrong, what is still held. */
struct Report {
    ~Report() {
        const std::string path = word("log");
        FILE* file = path.empty() ? nullptr : fopen(path.c_str(), "w");
        if (!file) return;
        for (const auto& call : calls) fprintf(file, "%s %ld\n", call.first.c_str(), call.second);
        for (const std::string& one : complaints) fprintf(file, "! %s\n", one.c_str());
        fprintf(file, "held %zu\nretained %d\n", held(), primary.retained);
        fclose(file);
    }
} report;

}  // namespace

long setting(const char* name, long otherwise) {
    const std::string value = word(name);
    return value.empty() ? otherwise : atol(value.c_str());
}

CUresult failed(const char* function, CUresult status, const std::string& why) {
    complaints.push_back(std::string(function) + " -> " + std::to_string(status) + ": " + why);
    return status;
}

CUresult enter(const char* function, unsigned rules) {
    const long count = ++calls[function];
    static const std::string planned = word("fail");
    if (!planned.compare(0, strlen(function) + 1, std::string(function) + ":")) {
        int status = 0;
        long at = 0;
        sscanf(planned.c_str() + strlen(function), ":%d:%ld", &status, &at);
        if (count == at) {
            if (status >= 700 && status < 720) broken = CUresult(status);
            spoil();
            return failed(function, CUresult(status), "as it was told to");
        }
    }
    if (broken && rules & CONTEXT) return broken;  // such an error stays until the process ends
    if (!initialized && strcmp(function, "cuInit") && strcmp(function, "cuDriverGetVersion"))
        return failed(function, CUDA_ERROR_NOT_INITIALIZED, "before cuInit");
    if (rules & CONTEXT && contexts.empty())
        return failed(function, CUDA_ERROR_INVALID_CONTEXT, "on a thread that has no context");
    if (rules & NOT_CAPTURED && capturing()) {
        spoil();
        return failed(function, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "during a capture");
    }
    return CUDA_SUCCESS;
}

}  // namespace driver
}  // namespace quamba

extern "C" int quamba_absent(const char* function) {
    return failed(function, CUDA_ERROR_NOT_SUPPORTED, "this driver has no such call");
}

CUresult cuInit(unsigned flags) {
    QUAMBA_CALL(ANYWHERE);
    if (flags) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "flags");
    initialized = true;
    return setting("devices", 1) ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
CUresult cuDriverGetVersion(int* version) {
    QUAMBA_CALL(ANYWHERE);
    *version = int(setting("driver", 12060));
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult status, const char** name) {
    static std::map<int, std::string> names = {{2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"}};
    std::string& found = names[status];
    if (found.empty()) found = "CUDA_ERROR_" + std::to_string(status);
    *name = found.c_str();
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult status, const char** text) {
    return cuGetErrorName(status, text);
}
CUresult cuDeviceGetCount(int* count) {
    QUAMBA_CALL(ANYWHERE);
    *count = int(setting("devices", 1));
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    QUAMBA_CALL(ANYWHERE);
    if (ordinal >= setting("devices", 1)) QUAMBA_FAIL(CUDA_ERROR_INVALID_DEVICE, "no such device");
    *device = ordinal;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
    QUAMBA_CALL(ANYWHERE);
    snprintf(name, size_t(bytes), "Emulated sm_%ld", setting("sm", 87));
    return CUDA_SUCCESS;
}
CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
    QUAMBA_CALL(ANYWHERE);
    *major = int(setting("sm", 87)) / 10;
    *minor = int(setting("sm", 87)) % 10;
    return CUDA_SUCCESS;
}
static long most_shared() {
    const long sm = setting("sm", 87);
    return (sm == 90 ? 227 : sm == 86 || sm == 89 ? 99 : 163) << 10;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    QUAMBA_CALL(ANYWHERE);
    const std::map<int, long> known = {
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, setting("sm", 87) / 10},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, setting("sm", 87) % 10},
        {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, setting("pieces", 1)},
        {CU_DEVICE_ATTRIBUTE_INTEGRATED, setting("integrated", 0)},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 8},
        {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1020000},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, most_shared()},
    };
    if (!known.count(which)) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "attribute " + std::to_string(which));
    *value = int(known.at(which));
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    QUAMBA_CALL(ANYWHERE);
    primary.retained++;
    *context = &primary;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    QUAMBA_CALL(ANYWHERE);
    if (primary.retained < 1) QUAMBA_FAIL(CUDA_ERROR_INVALID_CONTEXT, "nobody holds it");
    if (!--primary.retained) forget(), forget_graphs();
    return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
    QUAMBA_CALL(ANYWHERE);
    contexts.push_back(context);
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* context) {
    QUAMBA_CALL(CONTEXT);
    if (context) *context = contexts.back();
    contexts.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    Cubin cubin;
    const unsigned sm = unsigned(setting("sm", 87));
    if (!read_cubin(cubin, image)) QUAMBA_FAIL(CUDA_ERROR_INVALID_IMAGE, "no cubin");
    const unsigned driver = unsigned(setting("driver", 12060)) / 100 + unsigned(setting("driver", 12060)) % 100 / 10;
    // A board takes what is no newer than its driver, a card what is of the same major version.
    if (setting("integrated", 0) ? cubin.toolkit > driver : cubin.toolkit / 10 > driver / 10)
        QUAMBA_FAIL(CUDA_ERROR_INVALID_IMAGE, "of a newer CUDA than the driver's");
    if (cubin.sm / 10 != sm / 10 || cubin.sm > sm) QUAMBA_FAIL(CUDA_ERROR_NO_BINARY_FOR_GPU, "for another GPU");
    *module = new CUmod_st{cubin};
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    delete module;
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    QUAMBA_CALL(CONTEXT);
    const auto found = module->cubin.kernels.find(name);
    if (found == module->cubin.kernels.end()) QUAMBA_FAIL(CUDA_ERROR_NOT_FOUND, name);
    *function = new CUfunc_st{name, found->second, quamba::emu::find(name)};
    return CUDA_SUCCESS;
}
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) {
    QUAMBA_CALL(CONTEXT);  // of the launches before CUDA 4; pycuda still says it
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    QUAMBA_CALL(CONTEXT);
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > most_shared())
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "shared memory of a block: " + std::to_string(value));
    function->shared = size_t(value);
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void** separate, void** extra) {
    QUAMBA_CALL(CONTEXT);
    if (separate || !extra || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE ||
        extra[4] != CU_LAUNCH_PARAM_END)
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "arguments are wanted as a buffer");
    const char* buffer = static_cast<const char*>(extra[1]);
    const size_t bytes = *static_cast<size_t*>(extra[3]);
    const unsigned threads = bx * by * bz, registers = (f->facts.registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32);
    if (!x || !y || !z || x > 0x7fffffffu || y > 65535 || z > 65535 || !threads || bx > 1024 || by > 1024 || bz > 64)
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, f->name + ": a grid or block beyond what a GPU has");
    if (shared > (f->shared > (48 << 10) ? f->shared : 48 << 10))
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, f->name + ": more shared memory than it was told of");
    if (threads > f->facts.most_threads || registers > 65536)
        QUAMBA_FAIL(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, f->name + ": more threads than its registers or bounds allow");
    if (!f->entry || f->facts.parameters.size() != size_t(f->entry->arity))
        QUAMBA_FAIL(CUDA_ERROR_NOT_SUPPORTED, f->name + ": the emulator has another kernel of this name, or none");
    if (bytes != f->facts.bytes)
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, f->name + ": " + std::to_string(bytes) + " bytes of arguments, not " +
                                                  std::to_string(f->facts.bytes));
    std::vector<quamba::emu::Argument> given;
    for (const Parameter& p : f->facts.parameters) {
        uint64_t bits = 0;
        memcpy(&bits, buffer + p.offset, p.size);
        if (p.size == 8 && bits && !device_range(bits, 1))
            QUAMBA_FAIL(CUDA_ERROR_ILLEGAL_ADDRESS, f->name + ": an argument is no address of the device");
        given.push_back({quamba::emu::ANY, bits});
    }
    const dim3 grid = {x, y, z}, block = {bx, by, bz};
    return post(__func__, stream, [=] {
        quamba::emu::launch(*f->entry, grid, block, shared, setting("backwards", 0), given.data());
    });
}
