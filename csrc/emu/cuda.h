/* CUDA as the kernels of csrc/cuda use it, on the CPU: it tests indexing, barriers and arithmetic, not speed.
 *
 * A block's threads are fibers of one operating system thread; each runs until it waits.  Blocks run one after the
 * other.  So a barrier that is missing shows as old values when threads are run in one order or in the other, and the
 * tests run both.  What hardware leaves undefined ends the program here: lanes that wait for one that has left, masks
 * that differ, barriers that not every thread reaches. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "../cpu/half.h"
#include "fiber.h"
#include "races.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
using half = quamba::half;

namespace quamba {
namespace emu {

constexpr int WARP = 32, MOST_THREADS = 1024;
constexpr size_t SLOT = 32;             // bytes that a lane shows the others at once: an mma's operands
constexpr size_t STACK = size_t(1) << 17;

struct Warp {
    alignas(16) char slots[2][WARP][SLOT];
    unsigned arrived = 0, mask = 0;
    uint64_t generation = 0;
};

/* 16 bytes that are on their way to shared memory. */
struct Copy {
    void* to;
    const void* from;
    unsigned group;
};

struct Thread {
    dim3 index;
    unsigned number, lane, collectives;
    Warp* warp;
    bool done;
    std::vector<Copy> copies;
    unsigned groups;
    Fiber fiber;
};

extern Thread* self;
extern dim3 block_index, block_size, grid_size;
extern char* shared;
extern bool late;  // asynchronous copies are made when they are waited for, not when they are asked for

[[noreturn]] void fail(const char* what);
void yield();      // let others run
void progressed();  // somebody's wait is over
void block_barrier();

inline void warp_barrier(unsigned mask) {
    Warp& w = *self->warp;
    if (!(mask >> self->lane & 1)) fail("a lane calls a warp function whose mask leaves it out");
    if (w.arrived && w.mask != mask) fail("lanes of one warp call warp functions with different masks");
    w.mask = mask;
    w.arrived |= 1u << self->lane;
    const uint64_t before = w.generation;
    if (w.arrived == mask) {
        w.arrived = 0;
        w.generation++;
        progressed();
    } else {
        while (w.generation == before) yield();
    }
}

/* What every lane of the mask shows in this call, valid until the caller's next one.  Two sets of slots: nobody writes
 * the next but one before all have come to the next, and so have read this one. */
template <class T>
struct Seen {
    const char (*slots)[SLOT];
    T operator[](unsigned lane) const {
        T value;
        memcpy(&value, slots[lane], sizeof(T));
        return value;
    }
};
template <class T>
inline Seen<T> exchange(unsigned mask, const T& mine) {
    static_assert(sizeof(T) <= SLOT, "too much to show at once");
    auto& slots = self->warp->slots[self->collectives++ & 1];
    memcpy(slots[self->lane], &mine, sizeof(T));
    warp_barrier(mask);
    return {slots};
}

/* Asynchronous copies: hardware makes them at any time between asking and waiting, so tests try both ends. */
void copy_async(void* to, const void* from);
void copies_end();
void copies_wait(unsigned left);

}  // namespace emu
}  // namespace quamba

#define threadIdx (quamba::emu::self->index)
#define blockIdx (quamba::emu::block_index)
#define blockDim (quamba::emu::block_size)
#define gridDim (quamba::emu::grid_size)

inline void __syncthreads() { quamba::emu::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    quamba::emu::races_warp();
    quamba::emu::warp_barrier(mask);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int other) {
    const auto seen = quamba::emu::exchange(mask, value);
    return seen[quamba::emu::self->lane ^ unsigned(other)];
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int from) {
    const auto seen = quamba::emu::exchange(mask, value);
    return seen[unsigned(from) & 31];
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    const auto seen = quamba::emu::exchange(mask, value);
    const unsigned from = quamba::emu::self->lane + by;
    return seen[from < 32 ? from : quamba::emu::self->lane];
}

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return c;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t select) {
    const uint64_t both = uint64_t(b) << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= uint32_t(both >> 8 * (select >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
inline float __half2float(half h) { return quamba::half_to_float(h); }
inline half __float2half_rn(float v) { return quamba::float_to_half(v); }
inline int __float2int_rn(float v) { return int(lrintf(v)); }
inline uint32_t __float_as_uint(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
inline float __int_as_float(int32_t bits) { return __uint_as_float(uint32_t(bits)); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dsub_rn(double a, double b) { return a - b; }
// One operating system thread: nothing comes between.
QUAMBA_UNWATCHED inline int atomicAdd(int* at, int v) {
    quamba::emu::races_atomic(at, sizeof v);
    const int before = *at;
    *at += v;
    return before;
}
QUAMBA_UNWATCHED inline int atomicMax(int* at, int v) {
    quamba::emu::races_atomic(at, sizeof v);
    const int before = *at;
    if (v > before) *at = v;
    return before;
}
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
