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

/* `total` units in pieces of `grain`, for `threads`: a chunk of many pieces for each thread, together three quarters of all, then the
 * same with what is left, and so on down to single pieces.  Starting a chunk costs half a microsecond or so of waiting for its first
 * weights, and the last chunks must be small, so that threads which run at unequal speed finish together. */
struct Split {
    int64_t total, grain;
    int threads;

    int64_t pieces() const { return (total + grain - 1) / grain; }
    int chunks() const {
        int count = 0;
        for (int64_t left = pieces(); left;) {
            const int64_t size = each(left), taken = size ? size * threads : left;
            count += size ? threads : int(left);
            left -= taken;
        }
        return count;
    }
    int64_t begin(int64_t chunk) const {
        int64_t at = 0, left = pieces();
        for (int64_t size; (size = each(left)) != 0; chunk -= threads) {
            if (chunk < threads) return unit(at + chunk * size);
            at += size * threads, left -= size * threads;
        }
        return unit(at + chunk);
    }
    int64_t end(int64_t chunk) const { return begin(chunk + 1); }

  private:
    /* Pieces of the next chunks, or 0 when it is time for single ones. */
    int64_t each(int64_t left) const {
        const int64_t size = left * 3 / 4 / threads;
        return size >= 2 ? size : 0;
    }
    int64_t unit(int64_t piece) const { return piece * grain < total ? piece * grain : total; }
};

}  // namespace quamba
