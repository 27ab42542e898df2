/* Instructions that CUDA C++ has no name for, each as one function, with a body for the emulator.
 *
 * Fragments of mma.m16n8k32 (bytes) and m16n8k16 (halves), by lane = 4 * g + t:
 *     a[0], a[1]   rows g, g + 8 of A, its 32-bit word t of the first half of k;  a[2], a[3]  the same, second half
 *     b[0], b[1]   column g of B, word t of the first and of the second half of k
 *     c[0], c[1]   row g, columns 2 t and 2 t + 1;  c[2], c[3]  row g + 8
 * and of m16n8k8 (tf32: floats whose last 13 bits are ignored), with c the same:
 *     a[0], a[1]   rows g, g + 8, column t;  a[2], a[3]  the same, column t + 4
 *     b[0], b[1]   rows t, t + 4, column g */
#pragma once
#include "device.cuh"

namespace quamba {

#ifdef QUAMBA_EMU

struct MmaOperands {
    uint32_t a[4], b[2];
};

/* Calls multiply(i, word of A, word of B) for each result i of this lane and all eight words of k. */
template <class F>
inline void for_mma(const uint32_t (&a)[4], const uint32_t (&b)[2], F multiply) {
    const auto all = emu::exchange(ALL, MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    const unsigned g = emu::self->lane / 4, t = emu::self->lane % 4;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 8; k++) {
            const unsigned column = 2 * t + (i & 1);
            multiply(int(i), all[4 * g + k % 4].a[(i >> 1) + 2 * (k / 4)], all[4 * column + k % 4].b[k / 4]);
        }
}

inline void mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    for_mma(a, b, [&](int i, uint32_t u, uint32_t v) { c[i] = __dp4a(int(u), int(v), c[i]); });
}

/* c + exact products as tensor cores add them (Fasi et al. 2021, doi 10.7717/peerj-cs.330, for the A100): in groups of
 * EACH, every term cut off one bit below the last of the largest, the sum cut off to a float.  Always towards zero, so
 * errors of a long sum add up. */
template <int EACH, int COUNT>
inline float tensor_sum(float c, const double (&products)[COUNT]) {
    for (int start = 0; start < COUNT; start += EACH) {
        double largest = fabs(double(c));
        for (int i = start; i < start + EACH; i++) largest = fmax(largest, fabs(products[i]));
        if (!(largest > 0.0) || largest > 3.4e38) {
            for (int i = start; i < start + EACH; i++) c += float(products[i]);
            continue;
        }
        const double unit = ldexp(1.0, ilogb(largest) - 24);
        double sum = trunc(double(c) / unit);
        for (int i = start; i < start + EACH; i++) sum += trunc(products[i] / unit);
        sum *= unit;
        c = float(sum);
        if (fabs(double(c)) > fabs(sum)) c = nextafterf(c, 0.0f);
    }
    return c;
}

inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    double products[4][16];
    int filled[4] = {};
    for_mma(a, b, [&](int i, uint32_t u, uint32_t v) {
        for (int h = 0; h < 2; h++)
            products[i][filled[i]++] =
                double(half_to_float({uint16_t(u >> 16 * h)})) * double(half_to_float({uint16_t(v >> 16 * h)}));
    });
    for (int i = 0; i < 4; i++) c[i] = tensor_sum<8>(c[i], products[i]);
}

/* a * b + c for two halves at once; rounded once, exactly, because floats hold products of halves. */
inline uint32_t fma_half2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out = 0;
    for (int h = 0; h < 2; h++) {
        const double v = double(half_to_float({uint16_t(a >> 16 * h)})) * half_to_float({uint16_t(b >> 16 * h)}) +
                         half_to_float({uint16_t(c >> 16 * h)});
        out |= uint32_t(float_to_half(float(v)).bits) << 16 * h;
    }
    return out;
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const auto all = emu::exchange(ALL, MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    const unsigned g = emu::self->lane / 4, t = emu::self->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        double products[8];
        for (unsigned k = 0; k < 8; k++) {
            const uint32_t u = all[4 * g + k % 4].a[(i >> 1) + 2 * (k / 4)];
            const uint32_t v = all[4 * (2 * t + (i & 1)) + k % 4].b[k / 4];
            products[k] = double(__uint_as_float(u & 0xffffe000u)) * double(__uint_as_float(v & 0xffffe000u));
        }
        c[i] = tensor_sum<4>(c[i], products);
    }
}

inline void mma_from(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int32_t start) {
    for (int32_t& value : c) value = start;
    mma(c, a, b);
}

inline void mma_from(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float start) {
    for (float& value : c) value = start;
    mma(c, a, b);
}

/* Eight rows of eight halves from 32 lanes' addresses, four times (emu::exchange shows one address each). */
inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emu::fail("ldmatrix from an address that is no multiple of 16");
    const auto all = emu::exchange(ALL, row);
    const unsigned g = emu::self->lane / 4, t = emu::self->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        uint16_t low, high;
        if (transposed) {
            memcpy(&low, static_cast<const char*>(all[8 * i + 2 * t]) + 2 * g, 2);
            memcpy(&high, static_cast<const char*>(all[8 * i + 2 * t + 1]) + 2 * g, 2);
        } else {
            memcpy(&low, static_cast<const char*>(all[8 * i + g]) + 4 * t, 2);
            memcpy(&high, static_cast<const char*>(all[8 * i + g]) + 4 * t + 2, 2);
        }
        r[i] = low | uint32_t(high) << 16;
    }
}
inline void ldmatrix(uint32_t (&r)[4], const void* row) {
    load_matrices(r, row, false);
}
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
    load_matrices(r, row, true);
}

inline void copy_async(void* to, const void* from) {
    emu::copy_async(to, from);
}
inline void copies_end() {
    emu::copies_end();
}
template <int LEFT>
inline void copies_wait() {
    emu::copies_wait(LEFT);
}

inline uint4 load_once(const uint4* p) {
    return *p;
}

inline uint32_t and_xor(uint32_t a, uint32_t mask, uint32_t other) {
    return (a & mask) ^ other;
}

#else

__device__ inline void mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* c = a b + start, which costs no registers of its own. */
__device__ inline void mma_from(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int32_t start) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start));
}

__device__ inline void mma_from(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float start) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(start));
}

__device__ inline uint32_t shared_address(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

/* Four matrices of 8 x 8 halves: lane l gives row l % 8 of matrix l / 8, 16 bytes of shared memory; of matrix i it gets
 * row l / 4, columns 2 (l % 4) and the next, in r[i].  Transposed: rows and columns change places. */
__device__ inline void ldmatrix(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* 16 bytes from global to shared memory, past the L1, while the thread goes on; zeros where `from` is null.  Copies up
 * to copies_end() are a group; copies_wait<LEFT>() waits for this thread's own but the LEFT latest groups. */
__device__ inline void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(from ? 16 : 0)
                 : "memory");
}
__device__ inline void copies_end() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT>
__device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ inline uint32_t fma_half2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

/* (a & mask) ^ other in one instruction: left to itself the compiler makes two of it, each with a constant inside. */
__device__ inline uint32_t and_xor(uint32_t a, uint32_t mask, uint32_t other) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(a), "r"(mask), "r"(other));
    return out;
}

/* 16 bytes that nobody reads again: past the L1, which x and the scales need. */
__device__ inline uint4 load_once(const uint4* p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}

#endif

}  // namespace quamba
