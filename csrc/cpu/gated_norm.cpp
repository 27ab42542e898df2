/* y = y SiLU(z), then RMSNorm within each group of channels, in place.
 *
 * A chunk is a few rows.  The exponential makes it some 20 instructions for 16 values: 2 us for the 5120 of a 2.7B decode step. */
#include "rows.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, E, GROUPS };

constexpr int SIDE = 4;  // vectors side by side: the steps of one SiLU wait for each other

Shape shape(const Call& c) {
    return {{rows(c, c.size[M], c.size[E]).chunks()}, 0, 0};
}

void gated_norm(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[E]);
    const int64_t width = c.size[E] / c.size[GROUPS];
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++)
        for (int64_t group = 0; group < c.size[GROUPS]; group++) {
            float* y = c.at<float>(0) + m * c.size[E] + group * width;
            const float* z = c.at<float>(1) + m * c.stride[1] + group * width;
            f32x16 squares[SIDE];
            for (f32x16& sums : squares) sums = set(0.0f);
            int64_t i = 0;
            for (; i + SIDE * LANES <= width; i += SIDE * LANES) {
                f32x16 v[SIDE];
                for (int j = 0; j < SIDE; j++) v[j] = silu(load(z + i + j * LANES));
                for (int j = 0; j < SIDE; j++) {
                    v[j] = v[j] * load(y + i + j * LANES);
                    store(y + i + j * LANES, v[j]);
                    squares[j] = fma(v[j], v[j], squares[j]);
                }
            }
            for (; i < width; i += LANES) {
                const int n = lanes_at(i, width);
                const f32x16 v = load(y + i, n) * silu(load(z + i, n));
                store(y + i, v, n);
                squares[0] = fma(v, v, squares[0]);
            }
            const f32x16 all = (squares[0] + squares[1]) + (squares[2] + squares[3]);
            const f32x16 factor = set(1.0f / __builtin_sqrtf(sum(all) / float(width) + c.scalar[0]));
            for (i = 0; i < width; i += LANES) {
                const int n = lanes_at(i, width);
                store(y + i, load(y + i, n) * factor, n);
            }
        }
}

}  // namespace

extern const Kernel GATED_NORM[1] = {{"gated_norm", 2, 3, 1, shape, {gated_norm}}};

}  // namespace SIMD
}  // namespace quamba
