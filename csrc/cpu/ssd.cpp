/* Mamba2's recurrence: d = clamp(softplus(dt + bias)); s = exp(d A) s + d x[p] B[n]; y[p] = sum_n C[n] s[p, n] + D x[p].
 *
 * One token: a chunk is some heads; lanes over n, four rows p at once, which share B and C.  Every element of the state is read and
 * written once, so memory is the bound: 4 bytes an element in f16.
 *
 * Several tokens go in groups of 16, lanes over the tokens t of a group or over n.  With L[s][t] = a[s+1] .. a[t] for s <= t, else 0
 * (a = exp(d A), multiplied up and never divided), and the state before the group as s[p][n]:
 *
 *     y[p][t]  = a[0] L[0][t] sum_n s[p][n] C[n][t] + sum_s x[s][p] (d[s] L[s][t] sum_n B[s][n] C[n][t] + D (s == t))
 *     s[p][n]  = a[0] L[0][last] s[p][n] + sum_s (L[s][last] d[s] x[s][p]) B[s][n]
 *
 * Both are matrix products held in registers.  The first stage lays out B, C and B C, a group of tokens and of heads a chunk, because
 * the heads of a group share them; the second does a head a chunk.  2 N P + 16 P multiply-adds for a token and head are the bound. */
#include "rows.h"
#include "state.h"
#include "transpose.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { S, T, H, P, N, GROUPS };

constexpr int Q = LANES;                   // tokens of a group
constexpr int ROWS = TILE_N == 2 ? 16 : 4;  // rows p of a tile of y
constexpr int UPDATE_ROWS = TILE_N == 2 ? 8 : 4, UPDATE_BLOCKS = TILE_N;  // rows, and blocks of 16 n, of a tile of the state

/* The arguments of ssd_f32 and ssd_i8, whose xbc has scales. */
template <class X>
struct Args {
    const X* xbc;
    const float *scale, *dt, *dt_bias, *A, *D, *rows, *cols;
    void* state;
    float* y;
    int64_t dt_stride, tokens, H, P, N, groups, width, padded;  // width of xbc's rows; N, padded
    float dt_min, dt_max;

    explicit Args(const Call& c) {
        const int i = IS_CODES<X> ? 1 : 0;
        xbc = c.at<X>(0), scale = c.at<float>(i);
        dt = c.at<float>(i + 1), dt_stride = c.stride[i + 1], dt_bias = c.at<float>(i + 2);
        A = c.at<float>(i + 3), D = c.at<float>(i + 4);
        state = c.array[i + 5], rows = c.at<float>(i + 6), cols = c.at<float>(i + 7), y = c.at<float>(i + 8);
        tokens = c.size[SIMD::T], H = c.size[SIMD::H], P = c.size[SIMD::P], N = c.size[SIMD::N], groups = c.size[GROUPS];
        width = H * P + 2 * groups * N, padded = whole(N);
        dt_min = c.scalar[0], dt_max = c.scalar[1];
    }
    /* n values of token `row` of xbc from channel `from` on, as floats. */
    void values(float* out, int64_t row, int64_t from, int64_t n) const {
        expand(out, xbc + row * width + from, scale + from, n);
    }
    /* d of tokens row .. row + n of a head. */
    f32x16 steps(int64_t row, int64_t h, int n) const {
        float raw[LANES] = {};
        for (int t = 0; t < n; t++) raw[t] = dt[(row + t) * dt_stride + h];
        return min(max(softplus(load(raw) + set(dt_bias[h])), set(dt_min)), set(dt_max));
    }
    template <class State>
    State* state_of(int64_t s, int64_t h) const {
        return (State*)state + (s * H + h) * P * N;
    }
};

// ---- one token

/* R rows of a head's state from p on, lanes of n: the step, and C times the rows. */
template <int R, bool WHOLE, class State>
inline void step(State* s, int64_t N, f32x16 decay, const float* dx, const float* B, const float* C, const float* cols,
                 const float* inverse, const float* rows, const float* inverse_rows, f32x16* y, int n) {
    const f32x16 b = load(B), c = load(C);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        f32x16 scale = decay, reciprocal = decay;
        if (IS_CODES<State>) scale = load(cols) * set(rows[r]), reciprocal = load(inverse) * set(inverse_rows[r]);
        const f32x16 v = fma(decay, load_state<WHOLE>(s + r * N, scale, n), b * set(dx[r]));
        store_state<WHOLE>(s + r * N, v, reciprocal, n);
        y[r] = fma(c, v, y[r]);
    }
}

template <int R, class State>
inline void rows_step(State* s, int64_t N, f32x16 decay, const float* dx, const float* B, const float* C, const float* cols,
                      const float* inverse, const float* rows, const float* inverse_rows, float* y) {
    f32x16 sums[R];
    for (int r = 0; r < R; r++) sums[r] = set(0.0f);
    int64_t n = 0;
    for (; n + LANES <= N; n += LANES)
        step<R, true>(s + n, N, decay, dx, B + n, C + n, cols + n, inverse + n, rows, inverse_rows, sums, LANES);
    if (n < N) step<R, false>(s + n, N, decay, dx, B + n, C + n, cols + n, inverse + n, rows, inverse_rows, sums, int(N - n));
    for (int r = 0; r < R; r++) y[r] = sum(sums[r]);
}

template <class X, class State>
void head_step(const Args<X>& a, int64_t s, int64_t h, float* scratch) {
    const int64_t E = a.H * a.P, group = h / (a.H / a.groups), N = a.padded, P = whole(a.P);
    float *B = scratch, *C = B + N, *cols = C + N, *inverse = cols + N, *x = inverse + N, *dx = x + P, *y = dx + P;
    float *inverse_rows = y + P;
    a.values(B, s, E + group * a.N, a.N), a.values(C, s, E + (a.groups + group) * a.N, a.N), a.values(x, s, h * a.P, a.P);
    if (IS_CODES<State>) {
        expand(cols, a.cols + group * a.N, nullptr, a.N), invert(inverse, a.cols + group * a.N, a.N);
        invert(inverse_rows, a.rows + h * a.P, a.P);
    }
    const f32x16 d = a.steps(s, h, 1);
    float first[LANES];
    store(first, d);
    for (int64_t p = 0; p < P; p += LANES) store(dx + p, load(x + p) * set(first[0]));
    store(first, exp(d * set(a.A[h])));
    const f32x16 decay = set(first[0]);
    State* state = a.template state_of<State>(s, h);
    const float* rows = a.rows + h * a.P;
    int64_t p = 0;
    for (; p + 4 <= a.P; p += 4)
        rows_step<4>(state + p * a.N, a.N, decay, dx + p, B, C, cols, inverse, rows + p, inverse_rows + p, y + p);
    for (; p < a.P; p++)
        rows_step<1>(state + p * a.N, a.N, decay, dx + p, B, C, cols, inverse, rows + p, inverse_rows + p, y + p);
    for (p = 0; p < a.P; p += LANES) {
        const int k = lanes_at(p, a.P);
        store(a.y + s * E + h * a.P + p, fma(set(a.D[h]), load(x + p, k), load(y + p, k)), k);
    }
}

// ---- several tokens

/* What the heads of a group share: for every 16 tokens B [16][N], C [N][16], and B C [16][16]; N padded. */
struct Shared {
    int64_t N, groups_of_tokens;

    int64_t floats() const { return 2 * Q * N + Q * Q; }
    float* at(const Call& c, int64_t s, int64_t group, int64_t i) const {
        return (float*)c.shared + ((s * c.size[GROUPS] + group) * groups_of_tokens + i) * floats();
    }
};

Shared shared_of(const Call& c) {
    return {whole(c.size[N]), (c.size[T] + Q - 1) / Q};
}

/* sums[i] = sum_k rows[i][k] columns[k][16] for R rows. */
template <int R>
inline void product(const float* rows, int64_t stride, const float* columns, int64_t K, f32x16* sums) {
    for (int i = 0; i < R; i++) sums[i] = set(0.0f);
    for (int64_t k = 0; k < K; k++) {
        const f32x16 v = load(columns + k * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) sums[i] = fma(set(rows[i * stride + k]), v, sums[i]);
    }
}

template <class X>
void share(const Call& c, const Work& w) {
    const Args<X> a(c);
    const Shared shared = shared_of(c);
    const int64_t i = w.chunk % shared.groups_of_tokens, group = w.chunk / shared.groups_of_tokens % a.groups;
    const int64_t s = w.chunk / shared.groups_of_tokens / a.groups, row = s * a.tokens + i * Q, n = a.padded;
    const int count = lanes_at(i * Q, a.tokens);
    float *B = shared.at(c, s, group, i), *C = B + Q * n, *BC = C + n * Q, *rows = (float*)w.scratch;
    for (int t = 0; t < Q; t++) {
        for (int64_t j = 0; j < n; j += LANES) store(B + t * n + j, set(0.0f)), store(rows + t * n + j, set(0.0f));
        if (t >= count) continue;
        a.values(B + t * n, row + t, a.H * a.P + group * a.N, a.N);
        a.values(rows + t * n, row + t, a.H * a.P + (a.groups + group) * a.N, a.N);
    }
    transpose(rows, n, Q, n, C, Q);
    for (int t = 0; t < Q; t += ROWS) {
        f32x16 sums[ROWS];
        product<ROWS>(B + t * n, n, C, a.N, sums);
        for (int j = 0; j < ROWS; j++) store(BC + (t + j) * Q, sums[j]);
    }
}

/* The scratch of a head: its state [P][N], and of 16 tokens x [16][P], weighted x, and the weights of x in y [16][16]. */
struct Head {
    float *state, *x, *weighted, *weights, *tile;
    int64_t P, N;  // padded

    Head(float* scratch, int64_t P, int64_t N) : P(P), N(N) {
        state = scratch, x = state + P * N, weighted = x + Q * P, weights = weighted + Q * P, tile = weights + Q * Q;
    }
    static int64_t floats(int64_t P, int64_t N) { return P * N + 2 * Q * P + 2 * Q * Q; }
};

/* y of 16 tokens for ROWS rows of the state from p on. */
inline void tile_of_y(const Head& head, int64_t p, const float* C, int64_t N, f32x16 decay, int count, int channels, float* y,
                      int64_t stride) {
    f32x16 sums[ROWS];
    product<ROWS>(head.state + p * head.N, head.N, C, N, sums);
    for (int i = 0; i < ROWS; i++) sums[i] = sums[i] * decay;
    for (int s = 0; s < count; s++) {
        const f32x16 v = load(head.weights + s * Q);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) sums[i] = fma(set(head.x[s * head.P + p + i]), v, sums[i]);
    }
    for (int i = 0; i < ROWS; i++) store(head.tile + i * Q, sums[i]);
    float turned[Q * ROWS];
    transpose(head.tile, Q, ROWS, Q, turned, ROWS);
    for (int t = 0; t < count; t++)
        for (int i = 0; i < channels; i++) y[t * stride + p + i] = turned[t * ROWS + i];
}

/* The state after 16 tokens, R rows from p on and K blocks from n on. */
template <int R, int K>
inline void tile_of_state(const Head& head, int64_t p, int64_t n, const float* B, f32x16 decay, int count) {
    f32x16 sums[R][K];
    float* state = head.state + p * head.N + n;
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        for (int k = 0; k < K; k++) sums[i][k] = load(state + i * head.N + k * LANES) * decay;
    for (int s = 0; s < count; s++) {
        f32x16 b[K];
        for (int k = 0; k < K; k++) b[k] = load(B + s * head.N + n + k * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            const f32x16 x = set(head.weighted[s * head.P + p + i]);
            for (int k = 0; k < K; k++) sums[i][k] = fma(x, b[k], sums[i][k]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        for (int k = 0; k < K; k++) store(state + i * head.N + k * LANES, sums[i][k]);
}

/* 16 tokens of a head, `count` of which are real. */
template <class X>
void tokens(const Args<X>& a, const Head& head, const float* B, int64_t row, int64_t h, int count) {
    const float *C = B + Q * head.N, *BC = C + head.N * Q;
    float d[Q], decays[Q], unit[2 * Q] = {};
    unit[Q] = 1.0f;  // unit + Q - s has it in lane s
    const f32x16 steps = a.steps(row, h, count);
    store(d, steps), store(decays, exp(steps * set(a.A[h])));
    f32x16 L = set(0.0f);
    float last = 1.0f;  // L[s][last]
    for (int s = count - 1; s >= 0; s--) {
        const f32x16 here = load(unit + Q - s);
        if (s + 1 < count) L = L * set(decays[s + 1]), last *= decays[s + 1];
        L = L + here;
        store(head.weights + s * Q, fma(load(BC + s * Q) * set(d[s]), L, here * set(a.D[h])));
        a.values(head.x + s * head.P, row + s, h * a.P, a.P);
        for (int64_t p = 0; p < head.P; p += LANES)
            store(head.weighted + s * head.P + p, load(head.x + s * head.P + p) * set(last * d[s]));
    }
    const f32x16 before = L * set(decays[0]), after = set(last * decays[0]);
    float* y = a.y + row * a.H * a.P + h * a.P;
    for (int64_t p = 0; p < a.P; p += ROWS) {
        tile_of_y(head, p, C, a.N, before, count, int(least<int64_t>(ROWS, a.P - p)), y, a.H * a.P);
        for (int64_t i = p; i < p + ROWS; i += UPDATE_ROWS) {
            int64_t n = 0;
            for (; n + UPDATE_BLOCKS * LANES <= head.N; n += UPDATE_BLOCKS * LANES)
                tile_of_state<UPDATE_ROWS, UPDATE_BLOCKS>(head, i, n, B, after, count);
            if (n < head.N) tile_of_state<UPDATE_ROWS, 1>(head, i, n, B, after, count);
        }
    }
}

template <class X, class State>
void head_tokens(const Args<X>& a, const Call& c, int64_t s, int64_t h, float* scratch) {
    const Shared shared = shared_of(c);
    const Head head(scratch, whole(a.P), a.padded);
    const int64_t group = h / (a.H / a.groups);
    State* state = a.template state_of<State>(s, h);
    const auto lanes = [&](auto f) {
        for (int64_t p = 0; p < a.P; p++) {
            const float row = IS_CODES<State> ? a.rows[h * a.P + p] : 1.0f;
            for (int64_t n = 0; n < a.N; n += LANES) {
                const int k = lanes_at(n, a.N);
                const f32x16 scale = IS_CODES<State> ? load(a.cols + group * a.N + n, k) * set(row) : set(1.0f);
                f(state + p * a.N + n, head.state + p * head.N + n, scale, k);
            }
        }
    };
    for (int64_t i = 0; i < head.P * head.N; i += LANES) store(head.state + i, set(0.0f));
    for (int64_t i = 0; i < Q * head.P; i += LANES) store(head.x + i, set(0.0f)), store(head.weighted + i, set(0.0f));
    lanes([](State* in, float* out, f32x16 scale, int k) { store(out, load_state<false>(in, scale, k)); });
    for (int64_t i = 0; i < shared.groups_of_tokens; i++)
        tokens(a, head, shared.at(c, s, group, i), s * a.tokens + i * Q, h, lanes_at(i * Q, a.tokens));
    lanes([](State* out, float* in, f32x16 scale, int k) { store_state<false>(out, load(in), set(1.0f) / scale, k); });
}

// ---- chunks

/* Heads of one token: 16 KB of state a chunk. */
Split heads(const Call& c) {
    const int bytes = c.state == STATE_F32 ? 4 : c.state == STATE_F16 ? 2 : 1;
    return {c.size[S] * c.size[H], most<int64_t>(1, 16384 / (c.size[P] * c.size[N] * bytes)), c.threads};
}

Shape shape(const Call& c) {
    const Shared shared = shared_of(c);
    const int64_t P_ = whole(c.size[P]), one = 4 * shared.N + 4 * P_;
    if (c.size[T] == 1) return {{0, 0, heads(c).chunks()}, 0, size_t(one) * sizeof(float)};
    const int64_t groups = c.size[S] * c.size[GROUPS] * shared.groups_of_tokens;
    const int64_t many = most<int64_t>(Head::floats(P_, shared.N), Q * shared.N);
    return {{int(groups), int(c.size[S] * c.size[H]), 0}, size_t(groups * shared.floats()) * sizeof(float), size_t(many) * sizeof(float)};
}

template <class X, class State>
void one(const Call& c, const Work& w) {
    const Args<X> a(c);
    const Split all = heads(c);
    for (int64_t i = all.begin(w.chunk); i < all.end(w.chunk); i++) head_step<X, State>(a, i / a.H, i % a.H, (float*)w.scratch);
}

template <class X, class State>
void many(const Call& c, const Work& w) {
    head_tokens<X, State>(Args<X>(c), c, w.chunk / c.size[H], w.chunk % c.size[H], (float*)w.scratch);
}

template <class X>
void one_token(const Call& c, const Work& w) {
    QUAMBA_BY_STATE(one, X, c, w);
}
template <class X>
void many_tokens(const Call& c, const Work& w) {
    QUAMBA_BY_STATE(many, X, c, w);
}

}  // namespace

extern const Kernel SSD[2] = {
    {"ssd_f32", 9, 6, 2, shape, {share<float>, many_tokens<float>, one_token<float>}},
    {"ssd_i8", 10, 6, 2, shape, {share<int8_t>, many_tokens<int8_t>, one_token<int8_t>}},
};

}  // namespace SIMD
}  // namespace quamba
