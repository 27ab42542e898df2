/* y[t] = SiLU(bias + sum_w weight[:, w] x[t - W + 1 + w]), channel by channel; the state becomes the last W - 1
 * inputs.
 *
 * A chunk is all tokens of some blocks of 64 channels, so that the inputs that several tokens read stay in the L1
 * cache, and the state is written by the chunk that has read it.  Some 25 instructions for 16 values, most of them
 * SiLU's, bound a prefill; a decode step is bound by the 52 bytes a channel that it reads and writes. */
#include "rows.h"
#include "state.h"
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
    return {{split(c).chunks()}, 0, size_t(c.size[W]) * (BLOCK * sizeof(float) + sizeof(float*))};
}

struct Floats {
    static constexpr int Y = 4;
    float* y;

    Floats(const Call& c, int64_t) : y(c.at<float>(Y)) {}
    template <bool WHOLE>
    void put(int64_t at, int, f32x16 v, int n) const {
        store_lanes<WHOLE>(y + at, v, n);
    }
};

struct Codes {
    static constexpr int Y = 5;
    int8_t* y;
    f32x16 reciprocal[BLOCK / LANES];

    Codes(const Call& c, int64_t begin) : y(c.at<int8_t>(Y)) {
        for (int64_t i = begin; i < least(begin + BLOCK, c.size[C]); i += LANES)
            reciprocal[(i - begin) / LANES] = set(1.0f) / load(c.at<float>(Y_SCALE) + i, lanes_at(i, c.size[C]));
    }
    template <bool WHOLE>
    void put(int64_t at, int j, f32x16 v, int n) const {
        store_lanes<WHOLE>(y + at, to_codes(v, reciprocal[j]), n);
    }
};

/* out[w][i] = weight[begin + i][w] of a block */
void by_tap(const Call& c, int64_t begin, int count, float* out) {
    const int64_t width = c.size[W];
    const float* in = c.at<float>(WEIGHT) + begin * width;
    int i = 0;
    if (width == 4)
        for (; i + 4 <= count; i += 4) transpose4(in + 4 * i, 4, out + i, BLOCK);
    for (; i < count; i++)
        for (int64_t w = 0; w < width; w++) out[w * BLOCK + i] = in[i * width + w];
}

/* One token of a block whose inputs are at from[w], and weights at weight[w][BLOCK]: step by step for all lanes, because
 * they wait for each other less than the steps of one vector do. */
template <class Out, int WIDTH, bool WHOLE>
inline void token(const Out& out, const float* const* from, const float* bias, const float* weight, int64_t width,
                  int64_t at, int count) {
    const int vectors = WHOLE ? BLOCK / LANES : (count + LANES - 1) / LANES;
    const auto lanes = [&](int j) { return WHOLE ? LANES : lanes_at(j * LANES, count); };
    f32x16 v[BLOCK / LANES];
    for (int j = 0; j < vectors; j++) v[j] = load_lanes<WHOLE>(bias + j * LANES, lanes(j));
    for (int64_t w = 0; w < (WIDTH ? WIDTH : width); w++)
        for (int j = 0; j < vectors; j++)
            v[j] = fma(load_lanes<WHOLE>(from[w] + j * LANES, lanes(j)), load(weight + w * BLOCK + j * LANES), v[j]);
    for (int j = 0; j < vectors; j++) v[j] = silu(v[j]);
    for (int j = 0; j < vectors; j++) out.template put<WHOLE>(at + j * LANES, j, v[j], lanes(j));
}

/* All tokens of a block.  WIDTH is W, or 0 for one that only the call knows. */
template <class Out, int WIDTH>
void block(const Call& c, int64_t s, int64_t begin, int count, float* scratch) {
    const int64_t tokens = c.size[T], width = WIDTH ? WIDTH : c.size[W], all = c.size[C];
    const Out out(c, begin);
    float *weight = scratch, *state = c.at<float>(STATE) + s * (width - 1) * all + begin;
    const float *x = c.at<float>(X) + s * tokens * c.stride[X] + begin, *bias = c.at<float>(BIAS) + begin;
    const float** from = (const float**)(scratch + width * BLOCK);
    const float* taps[WIDTH ? WIDTH : 1];
    if (WIDTH) from = taps;
    // Input i of the window that began W - 1 tokens before the call.
    const auto input = [&](int64_t i) { return i < width - 1 ? state + i * all : x + (i - width + 1) * c.stride[X]; };
    by_tap(c, begin, count, weight);
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t at = (s * tokens + t) * all + begin;
        for (int64_t w = 0; w < width; w++) from[w] = input(t + w);
        if (count == BLOCK)
            token<Out, WIDTH, true>(out, from, bias, weight, width, at, count);
        else
            token<Out, WIDTH, false>(out, from, bias, weight, width, at, count);
    }
    for (int64_t w = 0; w < width - 1; w++) {
        const float* last = input(tokens + w);
        for (int i = 0; i < count; i += LANES) {
            const int n = lanes_at(i, count);
            store(state + w * all + i, load(last + i, n), n);
        }
    }
}

template <class Out>
void conv_silu(const Call& c, const Work& w) {
    const Split all = split(c);
    for (int64_t i = all.begin(w.chunk); i < all.end(w.chunk); i++) {
        const int64_t begin = i % blocks(c) * BLOCK;
        const int count = int(least(BLOCK, c.size[C] - begin));
        if (c.size[W] == 4)
            block<Out, 4>(c, i / blocks(c), begin, count, (float*)w.scratch);
        else
            block<Out, 0>(c, i / blocks(c), begin, count, (float*)w.scratch);
    }
}

}  // namespace

extern const Kernel CONV_SILU[2] = {
    {"conv_silu_f32", 5, 4, 0, shape, {conv_silu<Floats>}},
    {"conv_silu_i8", 6, 4, 0, shape, {conv_silu<Codes>}},
};

}  // namespace SIMD
}  // namespace quamba
