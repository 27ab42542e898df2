/* Mamba1's selective scan, gated: d = softplus(dt + bias); s[n] = exp(d A[n]) s[n] + d B[n] x; y = (sum_n C[n] s[n] + D x) SiLU(z).
 *
 * A chunk is all tokens of some blocks of 16 channels.  A decode step has lanes over the state, one channel after the other, as memory
 * holds it.  Several tokens have lanes over the channels: the block's A and state are transposed once, the state stays in registers,
 * and nothing is summed across lanes.  The exponentials are the work: 14 of some 18 instructions for 16 elements of the state. */
#include "rows.h"
#include "state.h"
#include "transpose.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { S, T, E, N };

constexpr float LOG2_E = 1.44269504f;

/* The arguments of scan_f32 and scan_i8, whose x has a scale. */
template <class X>
struct Args {
    const X* x;
    const float *x_scale, *dt, *dt_bias, *A, *B, *C, *D, *z, *rows, *cols;
    void* state;
    float* y;
    int64_t tokens, E, N, B_stride, C_stride, z_stride;

    explicit Args(const Call& c) {
        const int i = IS_CODES<X> ? 1 : 0;
        x = c.at<X>(0), x_scale = c.at<float>(i);
        dt = c.at<float>(i + 1), dt_bias = c.at<float>(i + 2), A = c.at<float>(i + 3);
        B = c.at<float>(i + 4), B_stride = c.stride[i + 4], C = c.at<float>(i + 5), C_stride = c.stride[i + 5];
        D = c.at<float>(i + 6), z = c.at<float>(i + 7), z_stride = c.stride[i + 7];
        state = c.array[i + 8], rows = c.at<float>(i + 9), cols = c.at<float>(i + 10), y = c.at<float>(i + 11);
        tokens = c.size[SIMD::T], E = c.size[SIMD::E], N = c.size[SIMD::N];
    }
};

/* Lanes of a token's channels from e on: what does not depend on the state. */
template <class X>
struct Channels {
    f32x16 d, x;

    Channels(const Args<X>& a, int64_t row, int64_t e, int n) {
        d = softplus(load(a.dt + row * a.E + e, n) + load(a.dt_bias + e, n));
        x = load(a.x + row * a.E + e, n);
        if (IS_CODES<X>) x = x * load(a.x_scale + e, n);
    }
    void finish(const Args<X>& a, f32x16 sums, int64_t row, int64_t e, int n) const {
        store(a.y + row * a.E + e, fma(load(a.D + e, n), x, sums) * silu(load(a.z + row * a.z_stride + e, n)), n);
    }
};

/* One channel's step; the sum of C s. */
template <bool WHOLE, class State>
inline f32x16 part(State* s, const float* A, const float* B, const float* C, const float* cols, f32x16 d, f32x16 dx, float row, int n) {
    const f32x16 scale = IS_CODES<State> ? load_lanes<WHOLE>(cols, n) * set(row) : set(1.0f);
    const f32x16 decay = exp(d * load_lanes<WHOLE>(A, n));
    const f32x16 v = fma(decay, load_state<WHOLE>(s, scale, n), dx * load_lanes<WHOLE>(B, n));
    store_state<WHOLE>(s, v, IS_CODES<State> ? set(1.0f) / scale : scale, n);
    return v * load_lanes<WHOLE>(C, n);
}

/* One token of a block of channels. */
template <class X, class State>
void step(const Args<X>& a, int64_t s, int64_t e, int count) {
    const Channels<X> in(a, s, e, count);
    float d[LANES], dx[LANES], sums[LANES];
    store(d, in.d), store(dx, in.d * in.x), store(sums, set(0.0f));
    const float *B = a.B + s * a.B_stride, *C = a.C + s * a.C_stride;
    for (int i = 0; i < count; i++) {
        State* state = (State*)a.state + (s * a.E + e + i) * a.N;
        const float *A = a.A + (e + i) * a.N, row = IS_CODES<State> ? a.rows[e + i] : 1.0f;
        f32x16 all = set(0.0f);
        int64_t n = 0;
        for (; n + LANES <= a.N; n += LANES)
            all = all + part<true>(state + n, A + n, B + n, C + n, a.cols + n, set(d[i]), set(dx[i]), row, LANES);
        if (n < a.N)
            all = all + part<false>(state + n, A + n, B + n, C + n, a.cols + n, set(d[i]), set(dx[i]), row, int(a.N - n));
        sums[i] = sum(all);
    }
    in.finish(a, load(sums), s, e, count);
}

/* 2^x for x <= 0 within 2 ulp (Cephes' polynomial); it stops at 2^-126. */
inline f32x16 exp2(f32x16 x) {
    x = max(x, set(-126.0f));
    const f32x16 n = round(x), r = x - n;
    f32x16 p = set(1.535336188319500e-4f);
    p = fma(p, r, set(1.339887440266574e-3f));
    p = fma(p, r, set(9.618437357674640e-3f));
    p = fma(p, r, set(5.550332471162809e-2f));
    p = fma(p, r, set(2.402264791363012e-1f));
    p = fma(p, r, set(6.931472028550421e-1f));
    return scale2(fma(p, r, set(1.0f)), n);
}

/* All tokens of a block of channels whose state s is [n][16], and A too, in units of log 2.  N is STATES if that is not 0. */
template <int STATES, class X>
void tokens(const Args<X>& a, int64_t first, int64_t e, int count, const float* A, float* memory) {
    f32x16 registers[STATES ? STATES : 1];
    const int64_t N = STATES ? STATES : a.N;
    for (int n = 0; n < STATES; n++) registers[n] = load(memory + n * LANES);
    for (int64_t row = first; row < first + a.tokens; row++) {
        const Channels<X> in(a, row, e, count);
        const f32x16 dx = in.d * in.x;
        const float *B = a.B + row * a.B_stride, *C = a.C + row * a.C_stride;
        f32x16 sums[2] = {set(0.0f), set(0.0f)};
#pragma GCC unroll 16
        for (int64_t n = 0; n < N; n++) {
            f32x16 s = STATES ? registers[n] : load(memory + n * LANES);
            s = fma(exp2(in.d * load(A + n * LANES)), s, dx * set(B[n]));
            sums[n % 2] = fma(set(C[n]), s, sums[n % 2]);
            if (STATES)
                registers[n] = s;
            else
                store(memory + n * LANES, s);
        }
        in.finish(a, sums[0] + sums[1], row, e, count);
    }
    for (int n = 0; n < STATES; n++) store(memory + n * LANES, registers[n]);
}

template <class X, class State>
void block(const Args<X>& a, int64_t s, int64_t e, int count, float* scratch) {
    const int64_t N = a.N, width = whole(N);
    State* state = (State*)a.state + (s * a.E + e) * N;
    float *rows = scratch, *A = rows + LANES * width, *memory = A + LANES * width;
    const auto lanes = [&](auto f) {
        for (int i = 0; i < count; i++)
            for (int64_t n = 0; n < N; n += LANES) f(i, n, lanes_at(n, N));
    };
    const auto scale = [&](int i, int64_t n, int k) { return IS_CODES<State> ? load(a.cols + n, k) * set(a.rows[e + i]) : set(1.0f); };
    for (int64_t i = 0; i < LANES * width; i += LANES) store(rows + i, set(0.0f));
    lanes([&](int i, int64_t n, int k) { store(rows + i * width + n, load(a.A + (e + i) * N + n, k) * set(LOG2_E)); });
    transpose(rows, width, LANES, width, A, LANES);
    lanes([&](int i, int64_t n, int k) { store(rows + i * width + n, load_state<false>(state + i * N + n, scale(i, n, k), k)); });
    transpose(rows, width, LANES, width, memory, LANES);
    if (N == 16)
        tokens<16>(a, s * a.tokens, e, count, A, memory);
    else
        tokens<0>(a, s * a.tokens, e, count, A, memory);
    transpose(memory, LANES, width, LANES, rows, width);
    lanes([&](int i, int64_t n, int k) {
        store_state<false>(state + i * N + n, load(rows + i * width + n), set(1.0f) / scale(i, n, k), k);
    });
}

int64_t blocks(const Call& c) {
    return whole(c.size[E]) / LANES;
}

/* 8 blocks of one token are about 1 us. */
Split split(const Call& c) {
    return {c.size[S] * blocks(c), most<int64_t>(1, 8 / c.size[T]), c.threads};
}

Shape shape(const Call& c) {
    return {{split(c).chunks()}, 0, size_t(3 * LANES * whole(c.size[N])) * sizeof(float)};
}

template <class X, class State>
void scan_state(const Call& c, const Work& w) {
    const Args<X> a(c);
    const Split all = split(c);
    for (int64_t i = all.begin(w.chunk); i < all.end(w.chunk); i++) {
        const int64_t s = i / blocks(c), e = i % blocks(c) * LANES;
        if (a.tokens == 1)
            step<X, State>(a, s, e, lanes_at(e, a.E));
        else
            block<X, State>(a, s, e, lanes_at(e, a.E), (float*)w.scratch);
    }
}

template <class X>
void scan(const Call& c, const Work& w) {
    QUAMBA_BY_STATE(scan_state, X, c, w);
}

}  // namespace

extern const Kernel SCAN[2] = {
    {"scan_f32", 12, 4, 0, shape, {scan<float>}},
    {"scan_i8", 13, 4, 0, shape, {scan<int8_t>}},
};

}  // namespace SIMD
}  // namespace quamba
