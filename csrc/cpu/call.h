/* One op with its arguments bound, and how its work is cut into chunks.
 *
 * A kernel is a few stages; a stage is so many chunks, done in any order by any thread; a stage begins when the one before it is
 * done.  Nothing else synchronizes, so a thread that the operating system takes away delays the others by one chunk at most. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "half.h"

namespace quamba {

constexpr int MAX_ARRAYS = 16, MAX_SIZES = 8, MAX_SCALARS = 2, MAX_STAGES = 3;
enum StateType { STATE_F32, STATE_F16, STATE_I8 };

/* The arguments in the op's order (quamba_edge/ops): arrays, sizes, scalars. */
struct Call {
    void* array[MAX_ARRAYS];
    int64_t stride[MAX_ARRAYS];  // elements from one row of the last axis to the next
    int64_t size[MAX_SIZES];
    float scalar[MAX_SCALARS];
    int state;                   // StateType of the argument whose dtype the session chose
    int threads;
    char* shared;                // scratch of this call, the same for all threads

    template <class T>
    T* at(int i) const {
        return static_cast<T*>(array[i]);
    }
};

/* A kernel's answer to the sizes of a call. */
struct Shape {
    int chunks[MAX_STAGES];
    size_t shared;   // bytes of scratch for all, kept from stage to stage
    size_t private_; // bytes of scratch for each thread, for one chunk
};

/* What a thread is to do; `scratch` is its own, on a 64-byte boundary. */
struct Work {
    int chunk;
    char* scratch;
};

struct Kernel {
    const char* name;
    int arrays, sizes, scalars;
    Shape (*shape)(const Call&);
    void (*stage[MAX_STAGES])(const Call&, const Work&);
};

/* `total` units for `threads`: a large piece for each, then small ones of `grain` units that make them finish together. */
struct Split {
    int64_t total, grain;
    int threads;

    int64_t pieces() const { return (total + grain - 1) / grain; }
    int64_t large() const { return pieces() <= 4 * threads ? 0 : pieces() * 3 / 4 / threads; }
    int chunks() const { return int(large() ? threads + pieces() - large() * threads : pieces()); }
    int64_t begin(int chunk) const {
        const int64_t big = large();
        const int64_t piece = !big ? chunk : chunk < threads ? chunk * big : threads * big + chunk - threads;
        return piece * grain < total ? piece * grain : total;
    }
    int64_t end(int chunk) const { return begin(chunk + 1); }
};

}  // namespace quamba
