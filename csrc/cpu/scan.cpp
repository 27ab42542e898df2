/* Mamba1's selective scan: d = softplus(dt + bias); s[n] = exp(d A[n]) s[n] + d B[n] x; y = (sum_n C[n] s[n] + D x)
 * SiLU(z).
 *
 * One token: a chunk is 128 channels, lanes over the state as memory holds it, one channel after the other; A and
 * the state are read once, so memory is the bound: 8 bytes an element in f16.
 *
 * Several tokens: a chunk is all tokens of 16 channels, lanes over these.  The block's A and state are transposed
 * once, four elements of the state stay in registers for 32 tokens, and nothing is summed across lanes.  The
 * exponentials are the bound: 11 of 14 instructions for 16 elements of the state. */
#include "rows.h"
#include "state.h"
#include "transpose.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { S, T, E, N };

constexpr float LOG2_E = 1.44269504f;
constexpr int SLICE = 32, GROUP = 4, RUN = 8 * LANES, AHEAD = 32;

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
        x = x_of(a, row, e, n);
    }
    static f32x16 x_of(const Args<X>& a, int64_t row, int64_t e, int n) {
        const f32x16 x = load(a.x + row * a.E + e, n);
        return IS_CODES<X> ? x * load(a.x_scale + e, n) : x;
    }
    static void finish(const Args<X>& a, f32x16 sums, int64_t row, int64_t e, int n) {
        sums = fma(load(a.D + e, n), x_of(a, row, e, n), sums);
        store(a.y + row * a.E + e, sums * silu(load(a.z + row * a.z_stride + e, n)), n);
    }
};

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

/* One channel's step, lanes of n; d in units of log 2.  Returns C s. */
struct Channel {
    const float *A, *B, *C;
    int64_t N;
    float d, dx;
    int32_t seed;

    template <bool WHOLE, class State>
    f32x16 part(State* s, int64_t n) const {
        const int count = WHOLE ? LANES : int(N - n);
        const f32x16 decay = exp2(set(d) * load_lanes<WHOLE>(A + n, count));
        const f32x16 v = fma(decay, load_lanes<WHOLE>(s + n, count), set(dx) * load_lanes<WHOLE>(B + n, count));
        store_state<WHOLE>(s, n, v, seed, count);
        return v * load_lanes<WHOLE>(C + n, count);
    }
};

/* One token of up to RUN channels: in three passes, so that no channel waits for the long chain of its logarithm. */
template <class X, class State>
void step(const Args<X>& a, int64_t s, int64_t e, int count, float* scratch) {
    float d[RUN], dx[RUN], sums[RUN] = {};
    const float *B = a.B + s * a.B_stride, *C = a.C + s * a.C_stride;
    for (int i = 0; i < count; i += LANES) {
        prefetch(a.D + e + i), prefetch(a.dt_bias + e + i + RUN), prefetch(a.x_scale + e + i + RUN);
        const Channels<X> in(a, s, e + i, lanes_at(i, count));
        store(d + i, in.d * set(LOG2_E)), store(dx + i, in.d * in.x);
    }
    if (IS_CODES<State>) {
        over(scratch, B, a.cols, a.N), times(scratch + a.N, C, a.cols, a.N), over(dx, dx, a.rows + e, count);
        B = scratch, C = scratch + a.N;
    }
    for (int i = 0; i < count; i++) {
        State* state = (State*)a.state + (s * a.E + e + i) * a.N;
        const float* A = a.A + (e + i) * a.N;
        prefetch(A + AHEAD * a.N), prefetch(state + AHEAD * a.N);
        const int32_t seed = IS_CODES<State> ? dither_seed(a.dt[s * a.E + e + i], e + i) : 0;
        const Channel channel = {A, B, C, a.N, d[i], dx[i], seed};
        f32x16 all = set(0.0f);
        int64_t n = 0;
        for (; n + LANES <= a.N; n += LANES) all = all + channel.part<true>(state, n);
        if (n < a.N) all = all + channel.part<false>(state, n);
        sums[i] = sum(all);
    }
    if (IS_CODES<State>) times(sums, sums, a.rows + e, count);
    for (int i = 0; i < count; i += LANES) Channels<X>::finish(a, load(sums + i), s, e + i, lanes_at(i, count));
}

/* Up to SLICE tokens, as one state element after the other meets them: what they need, and the sums that they get. */
struct Slice {
    float d[SLICE * LANES], dx[SLICE * LANES], sums[SLICE * LANES];
};

/* States n .. n + R of a block, [n][16] in memory as A is, through `count` tokens. */
template <int R>
inline void states(Slice& slice, int count, const float* A, float* memory, const float* B, int64_t B_stride,
                   const float* C, int64_t C_stride) {
    f32x16 s[R], a[R];
    for (int i = 0; i < R; i++) s[i] = load(memory + i * LANES), a[i] = load(A + i * LANES);
    for (int t = 0; t < count; t++) {
        const f32x16 d = load(slice.d + t * LANES), dx = load(slice.dx + t * LANES);
        f32x16 total = load(slice.sums + t * LANES);
        for (int i = 0; i < R; i++) {
            s[i] = fma(exp2(d * a[i]), s[i], dx * set(B[t * B_stride + i]));
            total = fma(set(C[t * C_stride + i]), s[i], total);
        }
        store(slice.sums + t * LANES, total);
    }
    for (int i = 0; i < R; i++) store(memory + i * LANES, s[i]);
}

/* All tokens of a block of channels whose state is [n][16], and A too, in units of log 2. */
template <class X>
void tokens(const Args<X>& a, int64_t first, int64_t e, int lanes, const float* A, float* memory, Slice& slice) {
    for (int64_t row = first; row < first + a.tokens; row += SLICE) {
        const int count = int(least<int64_t>(SLICE, first + a.tokens - row));
        for (int t = 0; t < count; t++) {
            const Channels<X> in(a, row + t, e, lanes);
            store(slice.d + t * LANES, in.d), store(slice.dx + t * LANES, in.d * in.x);
            store(slice.sums + t * LANES, set(0.0f));
        }
        const float *B = a.B + row * a.B_stride, *C = a.C + row * a.C_stride;
        for (int64_t n = 0, next; n < a.N; n = next) {
            const auto some = n + GROUP <= a.N ? states<GROUP> : states<1>;
            next = n + GROUP <= a.N ? n + GROUP : n + 1;
            some(slice, count, A + n * LANES, memory + n * LANES, B + n, a.B_stride, C + n, a.C_stride);
        }
        for (int t = 0; t < count; t++) Channels<X>::finish(a, load(slice.sums + t * LANES), row + t, e, lanes);
    }
}

template <class X, class State>
void block(const Args<X>& a, int64_t s, int64_t e, int count, float* scratch) {
    const int64_t N = a.N, width = whole(N);
    const float* last = a.dt + (s * a.tokens + a.tokens - 1) * a.E + e;
    State* state = (State*)a.state + (s * a.E + e) * N;
    float *rows = scratch, *A = rows + LANES * width, *memory = A + LANES * width;
    const auto lanes = [&](auto f) {
        for (int i = 0; i < count; i++)
            for (int64_t n = 0; n < N; n += LANES) f(i, n, lanes_at(n, N));
    };
    const auto scale = [&](int i, int64_t n, int k) { return load(a.cols + n, k) * set(a.rows[e + i]); };
    for (int64_t i = 0; i < LANES * width; i += LANES) store(rows + i, set(0.0f));
    lanes([&](int i, int64_t n, int k) { store(rows + i * width + n, load(a.A + (e + i) * N + n, k) * set(LOG2_E)); });
    transpose(rows, width, LANES, width, A, LANES);
    lanes([&](int i, int64_t n, int k) {
        const f32x16 v = load(state + i * N + n, k);
        store(rows + i * width + n, IS_CODES<State> ? v * scale(i, n, k) : v);
    });
    transpose(rows, width, LANES, width, memory, LANES);
    tokens(a, s * a.tokens, e, count, A, memory, *(Slice*)(memory + LANES * width));
    transpose(memory, LANES, width, LANES, rows, width);
    lanes([&](int i, int64_t n, int k) {
        const f32x16 v = load(rows + i * width + n);
        const int32_t seed = IS_CODES<State> ? dither_seed(last[i], e + i) : 0;
        store_state<false>(state + i * N, n, IS_CODES<State> ? v * (set(1.0f) / scale(i, n, k)) : v, seed, k);
    });
}

/* How many channels a chunk takes at a time. */
int64_t width(const Call& c) {
    return c.size[T] == 1 ? RUN : LANES;
}
int64_t blocks(const Call& c) {
    return (c.size[E] + width(c) - 1) / width(c);
}
Split split(const Call& c) {
    return {c.size[S] * blocks(c), 1, c.threads};
}

Shape shape(const Call& c) {
    return {{split(c).chunks()}, 0, size_t(3 * LANES * whole(c.size[N])) * sizeof(float) + sizeof(Slice)};
}

template <class X, class State>
void scan_state(const Call& c, const Work& w) {
    const Args<X> a(c);
    const Split all = split(c);
    for (int64_t i = all.begin(w.chunk); i < all.end(w.chunk); i++) {
        const int64_t s = i / blocks(c), e = i % blocks(c) * width(c);
        const int count = int(least(width(c), a.E - e));
        if (a.tokens == 1)
            step<X, State>(a, s, e, count, (float*)w.scratch);
        else
            block<X, State>(a, s, e, count, (float*)w.scratch);
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
