/* y[t] = SiLU(bias + sum_w weight[:, w] x[t - W + 1 + w]), a channel by itself, and the last W - 1 inputs into the state.
 *
 * A chunk is all tokens of some blocks of 64 channels, so that the inputs that several tokens read stay in the L1 cache, and the
 * state is written by the chunk that has read it.  Some 25 instructions for 16 values, most of them SiLU's: a prefill of 128 tokens
 * and 1792 channels is bound by these, a decode step by the 48 bytes a channel that it reads and writes. */
#include "rows.h"
#include "transpose.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { S, T, C, W };
enum Arrays { X, STATE, WEIGHT, BIAS, Y_SCALE };

constexpr int64_t BLOCK = 4 * LANES;

int64_t blocks(const Call& c) {
    return (c.size[C] + BLOCK - 1) / BLOCK;
}

/* 8 blocks of one token are 0.3 us, about what taking a chunk costs. */
Split split(const Call& c) {
    return {c.size[S] * blocks(c), most<int64_t>(1, 8 / c.size[T]), c.threads};
}

Shape shape(const Call& c) {
    return {{split(c).chunks()}, 0, size_t(c.size[W] * BLOCK) * sizeof(float)};
}

struct Floats {
    static constexpr int Y = 4;
    float* y;

    Floats(const Call& c, int64_t) : y(c.at<float>(Y)) {}
    void put(int64_t at, int, f32x16 v, int n) const { store(y + at, v, n); }
};

struct Codes {
    static constexpr int Y = 5;
    int8_t* y;
    f32x16 reciprocal[BLOCK / LANES];

    Codes(const Call& c, int64_t begin) : y(c.at<int8_t>(Y)) {
        for (int64_t i = begin; i < least(begin + BLOCK, c.size[C]); i += LANES)
            reciprocal[(i - begin) / LANES] = set(1.0f) / load(c.at<float>(Y_SCALE) + i, lanes_at(i, c.size[C]));
    }
    void put(int64_t at, int j, f32x16 v, int n) const { store(y + at, to_codes(v, reciprocal[j]), n); }
};

/* out[w][i] = weight[begin + i][w] of a block */
void by_tap(const Call& c, int64_t begin, int64_t end, float* out) {
    const int64_t width = c.size[W];
    const float* in = c.at<float>(WEIGHT) + begin * width;
    int64_t i = 0;
    if (width == 4)
        for (; i + 4 <= end - begin; i += 4) transpose4(in + 4 * i, 4, out + i, BLOCK);
    for (; i < end - begin; i++)
        for (int64_t w = 0; w < width; w++) out[w * BLOCK + i] = in[i * width + w];
}

template <class Out>
void channels(const Call& c, int64_t s, int64_t begin, float* weight) {
    const int64_t tokens = c.size[T], width = c.size[W], all = c.size[C], end = least(begin + BLOCK, all);
    const Out out(c, begin);
    float* state = c.at<float>(STATE) + s * (width - 1) * all;
    const float* x = c.at<float>(X) + s * tokens * c.stride[X];
    // Input i of the window that began W - 1 tokens before the call.
    const auto input = [&](int64_t i) { return i < width - 1 ? state + i * all : x + (i - width + 1) * c.stride[X]; };
    by_tap(c, begin, end, weight);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = begin; i < end; i += LANES) {
            const int n = lanes_at(i, end);
            f32x16 v = load(c.at<float>(BIAS) + i, n);
            for (int64_t w = 0; w < width; w++) v = fma(load(input(t + w) + i, n), load(weight + w * BLOCK + i - begin), v);
            out.put((s * tokens + t) * all + i, int(i - begin) / LANES, silu(v), n);
        }
    for (int64_t w = 0; w < width - 1; w++)
        for (int64_t i = begin; i < end; i += LANES) {
            const int n = lanes_at(i, end);
            store(state + w * all + i, load(input(tokens + w) + i, n), n);
        }
}

template <class Out>
void conv_silu(const Call& c, const Work& w) {
    const Split all = split(c);
    for (int64_t i = all.begin(w.chunk); i < all.end(w.chunk); i++)
        channels<Out>(c, i / blocks(c), i % blocks(c) * BLOCK, (float*)w.scratch);
}

}  // namespace

extern const Kernel CONV_SILU[2] = {
    {"conv_silu_f32", 5, 4, 0, shape, {conv_silu<Floats>}},
    {"conv_silu_i8", 6, 4, 0, shape, {conv_silu<Codes>}},
};

}  // namespace SIMD
}  // namespace quamba
