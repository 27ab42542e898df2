/* Mamba2's recurrence for several tokens of a sequence (ssd.cpp says what it computes).
 *
 * Tokens go in groups of 16, lanes over the tokens t of a group or over n.  With L[s][t] = a[s+1] .. a[t] for s <=
 * t, else 0 (a = exp(d A), multiplied up and never divided), and the state before the group as s[p][n]:
 *
 *     y[p][t]  = a[0] L[0][t] sum_n s[p][n] C[n][t] + sum_s x[s][p] (d[s] L[s][t] sum_n B[s][n] C[n][t] + D (s == t))
 *     s[p][n]  = a[0] L[0][last] s[p][n] + sum_s (L[s][last] d[s] x[s][p]) B[s][n]
 *
 * Both are matrix products held in registers.  The first stage lays out B, C and B C, 16 tokens of a group of heads
 * a chunk, because these heads share them; the second does a head a chunk.  2 N P + 16 P multiply-adds for a token
 * and head are the bound. */
#pragma once
#include "ssd.h"
#include "transpose.h"

namespace quamba {
namespace SIMD {

namespace ssd {

constexpr int Q = LANES;                    // tokens of a group
constexpr int ROWS = TILE_N == 2 ? 16 : 4;  // rows p of a tile of y
constexpr int UPDATE_ROWS = TILE_N == 2 ? 8 : 4, UPDATE_BLOCKS = TILE_N;  // rows p and blocks of 16 n of a state's tile
constexpr int64_t SLAB = 128;  // n in a row of the scratch: a constant distance between rows, which addresses can hold

/* What the heads of a group share: for every 16 tokens B [16][N], C [N][16], and B C [16][16]; N padded. */
struct Shared {
    int64_t N, groups_of_tokens;

    int64_t floats() const { return 2 * Q * N + Q * Q; }
    float* at(const Call& c, int64_t s, int64_t group, int64_t i) const {
        return (float*)c.shared + ((s * c.size[5] + group) * groups_of_tokens + i) * floats();
    }
};

Shared shared_of(const Call& c) {
    return {whole(c.size[4]), (c.size[1] + Q - 1) / Q};
}

/* sums[i] += sum_k rows[i][k] columns[k][16] for R rows.  Columns k and k + 8 go together: rows are a multiple of 512 bytes apart, so
 * that two of them in a row would ask the same bank of the first cache, and half a line further does not (lab/log.md). */
template <int R>
inline void product(const float* rows, int64_t stride, const float* columns, int64_t K, f32x16* sums) {
    constexpr int HALF = LANES / 2;
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES)
        for (int64_t j = k; j < k + HALF; j++) {
            const f32x16 u = load(columns + j * LANES), v = load(columns + (j + HALF) * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < R; i++) {
                sums[i] = fma(set(rows[i * stride + j]), u, sums[i]);
                sums[i] = fma(set(rows[i * stride + j + HALF]), v, sums[i]);
            }
        }
    for (; k < K; k++) {
        const f32x16 v = load(columns + k * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) sums[i] = fma(set(rows[i * stride + k]), v, sums[i]);
    }
}

template <class X, class State>
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
        a.template outer<State>(B + t * n, rows + t * n, row + t, group);
    }
    transpose(rows, n, Q, n, C, Q);
    for (int t = 0; t < Q; t += ROWS) {
        f32x16 sums[ROWS];
        for (int j = 0; j < ROWS; j++) sums[j] = set(0.0f);
        product<ROWS>(B + t * n, n, C, a.N, sums);
        for (int j = 0; j < ROWS; j++) store(BC + (t + j) * Q, sums[j]);
    }
}

/* The scratch of a head: its state [N / SLAB][P][SLAB], for all tokens d and decays, and for 16 of them
 * x [16][P], weighted x, and the weights of x in y [16][16]. */
struct Head {
    float *d, *decays, *x, *weighted, *weights, *states;
    int64_t P, N;  // padded

    Head(float* scratch, int64_t tokens, int64_t P, int64_t N) : P(P), N(N) {
        d = scratch, decays = d + tokens, x = decays + tokens, weighted = x + Q * P, weights = weighted + Q * P;
        states = weights + Q * Q;
    }
    static int64_t floats(int64_t tokens, int64_t P, int64_t N) {
        return 2 * tokens + 2 * Q * P + Q * Q + (N + SLAB - 1) / SLAB * SLAB * P;
    }
    float* state(int64_t p, int64_t n) const { return states + (n / SLAB * P + p) * SLAB + n % SLAB; }
};

/* y of 16 tokens for ROWS rows of the state from p on. */
template <class State>
inline void tile_of_y(const Head& head, int64_t p, const float* C, int64_t N, f32x16 decay, const float* rows,
                      int count, int channels, float* y, int64_t stride) {
    f32x16 sums[ROWS];
    for (int i = 0; i < ROWS; i++) sums[i] = set(0.0f);
    for (int64_t n = 0; n < N; n += SLAB) product<ROWS>(head.state(p, n), SLAB, C + n * Q, least(N - n, SLAB), sums);
    for (int i = 0; i < ROWS; i++) sums[i] = sums[i] * decay;
    if (IS_CODES<State>)
        for (int i = 0; i < channels; i++) sums[i] = sums[i] * set(rows[p + i]);
    for (int s = 0; s < count; s++) {
        const f32x16 v = load(head.weights + s * Q);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) sums[i] = fma(set(head.x[s * head.P + p + i]), v, sums[i]);
    }
    alignas(64) float tile[ROWS * Q], turned[Q * ROWS];
    for (int i = 0; i < ROWS; i++) store(tile + i * Q, sums[i]);
    if (count == Q && channels == ROWS) return transpose(tile, Q, ROWS, Q, y + p, stride);
    transpose(tile, Q, ROWS, Q, turned, ROWS);
    for (int t = 0; t < count; t++)
        for (int i = 0; i < channels; i++) y[t * stride + p + i] = turned[t * ROWS + i];
}

/* The state after 16 tokens, R rows from p on and K blocks from n on. */
template <int R, int K>
inline void tile_of_state(const Head& head, int64_t p, int64_t n, const float* B, f32x16 decay, int count) {
    f32x16 sums[R][K];
    float* state = head.state(p, n);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        for (int k = 0; k < K; k++) sums[i][k] = load(state + i * SLAB + k * LANES) * decay;
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
        for (int k = 0; k < K; k++) store(state + i * SLAB + k * LANES, sums[i][k]);
}

/* 16 tokens of a head from `first` on, `count` of which are real; `row` is that of the sequence's first token. */
template <class State, class X>
void tokens(const Args<X>& a, const Head& head, const float* B, int64_t row, int64_t first, int64_t h, int count) {
    const float *C = B + Q * head.N, *BC = C + head.N * Q, *d = head.d + first, *decays = head.decays + first;
    float unit[2 * Q] = {};
    unit[Q] = 1.0f;  // unit + Q - s has it in lane s
    f32x16 L = set(0.0f);
    float last = 1.0f;  // L[s][last]
    for (int s = count - 1; s >= 0; s--) {
        const f32x16 here = load(unit + Q - s);
        if (s + 1 < count) L = L * set(decays[s + 1]), last *= decays[s + 1];
        L = L + here;
        store(head.weights + s * Q, fma(load(BC + s * Q) * set(d[s]), L, here * set(a.D[h])));
        float *x = head.x + s * head.P, *weighted = head.weighted + s * head.P;
        a.values(x, row + first + s, h * a.P, a.P);
        for (int64_t p = 0; p < head.P; p += LANES) store(weighted + p, load(x + p) * set(last * d[s]));
        if (IS_CODES<State>) over(weighted, weighted, a.rows + h * a.P, a.P);
    }
    const f32x16 before = L * set(decays[0]), after = set(last * decays[0]);
    float* y = a.y + (row + first) * a.H * a.P + h * a.P;
    for (int64_t p = 0; p < a.P; p += ROWS) {
        const int channels = int(least<int64_t>(ROWS, a.P - p));
        tile_of_y<State>(head, p, C, a.N, before, a.rows + h * a.P, count, channels, y, a.H * a.P);
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
    const Head head(scratch, shared.groups_of_tokens * Q, whole(a.P), a.padded);
    const int64_t row = s * a.tokens;
    State* state = a.template state_of<State>(s, h);
    for (int64_t p = 0; p < a.P; p++) {
        int64_t n = 0;
        for (; n + LANES <= a.N; n += LANES) store(head.state(p, n), load(state + p * a.N + n));
        if (n < a.N) store(head.state(p, n), load(state + p * a.N + n, int(a.N - n)));
    }
    for (int64_t t = 0; t < a.tokens; t += Q) {
        const f32x16 d = a.steps(row + t, h, lanes_at(t, a.tokens));
        store(head.d + t, d), store(head.decays + t, exp(d * set(a.A[h])));
    }
    for (int64_t i = 0; i < shared.groups_of_tokens; i++)
        tokens<State>(a, head, shared.at(c, s, h / (a.H / a.groups), i), row, i * Q, h, lanes_at(i * Q, a.tokens));
    const float dt = a.dt[(row + a.tokens - 1) * a.dt_stride + h];
    for (int64_t p = 0; p < a.P; p++) {
        const int32_t seed = IS_CODES<State> ? dither_seed(dt, h * a.P + p) : 0;
        int64_t n = 0;
        for (; n + LANES <= a.N; n += LANES) store_state<true>(state + p * a.N, n, load(head.state(p, n)), seed, LANES);
        if (n < a.N) store_state<false>(state + p * a.N, n, load(head.state(p, n)), seed, int(a.N - n));
    }
}

}  // namespace ssd

}  // namespace SIMD
}  // namespace quamba
