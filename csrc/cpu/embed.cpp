/* Rows of the embedding, decoded from the layout that the head reads.
 *
 * A token's row is one lane of a block of 16: K/8 words that lie 64 bytes apart.  A few hundred cache lines a token. */
#include "rows.h"

namespace quamba {
namespace SIMD {

namespace {

Split tokens(const Call& c) {
    return {c.size[0], 4, c.threads};
}

Shape shape(const Call& c) {
    return {{tokens(c).chunks()}, 0, 0};
}

void embed_w4(const Call& c, const Work& w) {
    const int64_t K = c.size[2], G = c.size[3], lines = (K + 7) / 8, groups = (K + G - 1) / G;
    const Split split = tokens(c);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const int64_t row = c.at<int32_t>(0)[m], block = row / 16, lane = row % 16;
        const uint32_t* words = c.at<uint32_t>(1) + block * lines * 16 + lane;
        const half* scales = c.at<half>(2) + block * groups * 16 + lane;
        float* y = c.at<float>(3) + m * K;
        for (int64_t k = 0; k < K; k++) {  // column 8 j + i is nibble i of the low halves, or i - 4 of the high ones
            const int i = int(k % 8), shift = i < 4 ? 8 * i : 8 * (i - 4) + 4;
            y[k] = float(int(words[k / 8 * 16] >> shift & 15) - 8) * half_to_float(scales[k / G * 16]);
        }
    }
}

void embed_w8(const Call& c, const Work& w) {
    const int64_t K = c.size[2], lines = (K + 3) / 4;
    const Split split = tokens(c);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const int64_t row = c.at<int32_t>(0)[m];
        const int8_t* codes = c.at<int8_t>(1) + (row / 16 * lines * 16 + row % 16) * 4;
        const float scale = c.at<float>(2)[row];
        float* y = c.at<float>(3) + m * K;
        for (int64_t k = 0; k < K; k++) y[k] = float(codes[k / 4 * 64 + k % 4]) * scale;
    }
}

void embed_w16(const Call& c, const Work& w) {
    const int64_t K = c.size[2];
    const Split split = tokens(c);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const half* row = c.at<half>(1) + c.at<int32_t>(0)[m] * K;
        float* y = c.at<float>(2) + m * K;
        for (int64_t i = 0; i < K; i += LANES) {
            const int n = lanes_at(i, K);
            store(y + i, load(row + i, n), n);
        }
    }
}

}  // namespace

extern const Kernel EMBED[3] = {
    {"embed_w4", 4, 4, 0, shape, {embed_w4}},
    {"embed_w8", 4, 3, 0, shape, {embed_w8}},
    {"embed_w16", 3, 3, 0, shape, {embed_w16}},
};

}  // namespace SIMD
}  // namespace quamba
