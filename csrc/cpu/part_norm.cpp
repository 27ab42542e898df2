/* x / sqrt(mean(x^2) + eps) within each part of a row, in place.
 *
 * A chunk is a few rows.  Falcon-Mamba's B and C are 2 parts of 16 values: a decode step reads and writes 128 bytes, so
 * what it costs is starting the op, once a layer. */
#include "rows.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, E, PARTS };

void part_norm(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[E]);
    const int64_t width = c.size[E] / c.size[PARTS];
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++)
        for (int64_t part = 0; part < c.size[PARTS]; part++) {
            float* x = c.at<float>(0) + m * c.stride[0] + part * width;
            const f32x16 factor = set(inverse_rms(x, width, c.scalar[0]));
            for (int64_t i = 0; i < width; i += LANES) {
                const int n = lanes_at(i, width);
                store(x + i, load(x + i, n) * factor, n);
            }
        }
}

}  // namespace

extern const Kernel PART_NORM[1] = {{"part_norm", 1, 3, 1, shape_of_rows, {part_norm}}};

}  // namespace SIMD
}  // namespace quamba
