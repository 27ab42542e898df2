/* One instruction each, for test_fragments.py: registers of lane l in, registers out. */
#include "ptx.cuh"

extern "C" __global__ void fragment_i8(const uint32_t* a, const uint32_t* b, int* c) {
    const int l = threadIdx.x;
    int sum[4] = {c[4 * l], c[4 * l + 1], c[4 * l + 2], c[4 * l + 3]};
    quamba::mma(sum, {a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]}, {b[2 * l], b[2 * l + 1]});
    for (int i = 0; i < 4; i++) c[4 * l + i] = sum[i];
}

extern "C" __global__ void fragment_f16(const uint32_t* a, const uint32_t* b, float* c) {
    const int l = threadIdx.x;
    float sum[4];
    quamba::mma_from(sum, {a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]}, {b[2 * l], b[2 * l + 1]}, 0.5f);
    for (int i = 0; i < 4; i++) c[4 * l + i] += sum[i];
}

extern "C" __global__ void fragment_tf32(const uint32_t* a, const uint32_t* b, float* c) {
    const int l = threadIdx.x;
    float sum[4] = {c[4 * l], c[4 * l + 1], c[4 * l + 2], c[4 * l + 3]};
    quamba::mma_tf32(sum, {a[4 * l], a[4 * l + 1], a[4 * l + 2], a[4 * l + 3]}, {b[2 * l], b[2 * l + 1]});
    for (int i = 0; i < 4; i++) c[4 * l + i] = sum[i];
}

extern "C" __global__ void matrices(const uint4* rows, uint32_t* plain, uint32_t* transposed) {
    QUAMBA_SHARED(uint4, shared);
    const int l = threadIdx.x;
    shared[l] = rows[l];
    __syncwarp();
    uint32_t r[4];
    quamba::ldmatrix(r, shared + l);
    for (int i = 0; i < 4; i++) plain[4 * l + i] = r[i];
    quamba::ldmatrix_transposed(r, shared + l);
    for (int i = 0; i < 4; i++) transposed[4 * l + i] = r[i];
}

extern "C" __global__ void copies(const uint4* from, uint4* to) {
    QUAMBA_SHARED(uint4, shared);
    const int i = threadIdx.x;
    quamba::copy_async(shared + i, from + i);
    quamba::copies_end();
    quamba::copy_async(shared + 32 + i, i % 2 ? from + 32 + i : nullptr);
    quamba::copies_end();
    quamba::copies_wait<1>();
    to[i] = shared[i];
    quamba::copies_wait<0>();
    to[32 + i] = shared[32 + i];
}

extern "C" __global__ void too_early(const uint4* from, uint4* to) {
    QUAMBA_SHARED(uint4, shared);
    quamba::copy_async(shared + threadIdx.x, from + threadIdx.x);
    quamba::copies_end();
    quamba::copies_wait<1>();
    to[threadIdx.x] = shared[threadIdx.x];
    quamba::copies_wait<0>();
}
