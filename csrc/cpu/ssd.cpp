/* Mamba2's recurrence: d = clamp(softplus(dt + bias)); s = exp(d A) s + d x[p] B[n]; y[p] = sum_n C[n] s[p, n] + D
 * x[p].
 *
 * One token, here: a chunk is some heads; lanes over n, four rows p at once, which share B and C.  Every element of
 * the state is read and written once, so memory is the bound: 4 bytes an element in f16.  Several tokens:
 * ssd_tokens.h. */
#include "ssd_tokens.h"

namespace quamba {
namespace SIMD {

namespace ssd {

enum Sizes { S, T, H, P, N, GROUPS };

// ---- one token

/* What the rows of a head share. */
struct Token {
    const float *B, *C;
    f32x16 decay;
    float dt;  // raw: it seeds the dither of codes
};

/* R rows of a head's state, lanes of n: the step, and C times the rows. */
template <int R, bool WHOLE, class State>
inline void step(State* s, int64_t N, const Token& at, const float* dx, const int32_t* seeds, f32x16* y, int64_t n) {
    const f32x16 b = load(at.B + n), c = load(at.C + n);
    const int count = WHOLE ? LANES : int(N - n);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const f32x16 v = fma(at.decay, load_lanes<WHOLE>(s + r * N + n, count), b * set(dx[r]));
        store_state<WHOLE>(s + r * N, n, v, seeds[r], count);
        y[r] = fma(c, v, y[r]);
    }
}

/* R rows from the model's row `first` on. */
template <int R, class State>
inline void rows_step(State* s, int64_t N, const Token& at, const float* dx, int64_t first, float* y) {
    f32x16 sums[R];
    int32_t seeds[R] = {};
    for (int r = 0; r < R; r++) sums[r] = set(0.0f);
    if (IS_CODES<State>)
        for (int r = 0; r < R; r++) seeds[r] = dither_seed(at.dt, first + r);
    int64_t n = 0;
    for (; n + LANES <= N; n += LANES) step<R, true>(s, N, at, dx, seeds, sums, n);
    if (n < N) step<R, false>(s, N, at, dx, seeds, sums, n);
    for (int r = 0; r < R; r++) y[r] = sum(sums[r]);
}

template <class X, class State>
void head_step(const Args<X>& a, int64_t s, int64_t h, float* scratch) {
    const int64_t E = a.H * a.P, P = whole(a.P), N = a.padded;
    float *B = scratch, *C = B + N, *x = C + N, *dx = x + P, *y = dx + P, first[LANES];
    a.template outer<State>(B, C, s, h / (a.H / a.groups));
    a.values(x, s, h * a.P, a.P);
    const f32x16 d = a.steps(s, h, 1);
    store(first, d);
    for (int64_t p = 0; p < P; p += LANES) store(dx + p, load(x + p) * set(first[0]));
    store(first, exp(d * set(a.A[h])));
    const Token at = {B, C, set(first[0]), a.dt[s * a.dt_stride + h]};
    if (IS_CODES<State>) over(dx, dx, a.rows + h * a.P, a.P);
    State* state = a.template state_of<State>(s, h);
    int64_t p = 0;
    for (; p + 4 <= a.P; p += 4) rows_step<4>(state + p * a.N, a.N, at, dx + p, h * a.P + p, y + p);
    for (; p < a.P; p++) rows_step<1>(state + p * a.N, a.N, at, dx + p, h * a.P + p, y + p);
    if (IS_CODES<State>) times(y, y, a.rows + h * a.P, a.P);
    for (p = 0; p < a.P; p += LANES) {
        const int k = lanes_at(p, a.P);
        store(a.y + s * E + h * a.P + p, fma(set(a.D[h]), load(x + p, k), load(y + p, k)), k);
    }
}

// ---- chunks

/* Heads of one token: 16 KB of state a chunk. */
Split heads(const Call& c) {
    const int bytes = c.state == STATE_F32 ? 4 : c.state == STATE_F16 ? 2 : 1;
    return {c.size[S] * c.size[H], most<int64_t>(1, 16384 / (c.size[P] * c.size[N] * bytes)), c.threads};
}

Shape shape(const Call& c) {
    const Shared shared = shared_of(c);
    const int64_t P_ = whole(c.size[P]), one = 2 * shared.N + 3 * P_;
    if (c.size[T] == 1) return {{0, 0, heads(c).chunks()}, 0, size_t(one) * sizeof(float)};
    const int64_t groups = c.size[S] * c.size[GROUPS] * shared.groups_of_tokens;
    const int64_t many = most<int64_t>(Head::floats(shared.groups_of_tokens * Q, P_, shared.N), Q * shared.N);
    return {{int(groups), int(c.size[S] * c.size[H]), 0}, size_t(groups * shared.floats()) * sizeof(float),
            size_t(many) * sizeof(float)};
}

template <class X, class State>
void one(const Call& c, const Work& w) {
    const Args<X> a(c);
    const Split all = heads(c);
    for (int64_t i = all.begin(w.chunk); i < all.end(w.chunk); i++)
        head_step<X, State>(a, i / a.H, i % a.H, (float*)w.scratch);
}

template <class X, class State>
void many(const Call& c, const Work& w) {
    head_tokens<X, State>(Args<X>(c), c, w.chunk / c.size[H], w.chunk % c.size[H], (float*)w.scratch);
}

template <class X>
void outer_products(const Call& c, const Work& w) {
    QUAMBA_BY_STATE(share, X, c, w);
}
template <class X>
void one_token(const Call& c, const Work& w) {
    QUAMBA_BY_STATE(one, X, c, w);
}
template <class X>
void many_tokens(const Call& c, const Work& w) {
    QUAMBA_BY_STATE(many, X, c, w);
}

}  // namespace ssd

extern const Kernel SSD[2] = {
    {"ssd_f32", 9, 6, 2, ssd::shape, {ssd::outer_products<float>, ssd::many_tokens<float>, ssd::one_token<float>}},
    {"ssd_i8", 10, 6, 2, ssd::shape, {ssd::outer_products<int8_t>, ssd::many_tokens<int8_t>, ssd::one_token<int8_t>}},
};

}  // namespace SIMD
}  // namespace quamba
