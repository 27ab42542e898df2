/* x / sqrt(mean(x^2) + eps), as codes or f16.
 *
 * A chunk is a few rows.  A decode step has one row of 3-10 KB, read twice from the first cache: less than a microsecond. */
#include "rows.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, K };

template <class T>
void rmsnorm(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[K]);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const float* x = c.at<float>(0) + m * c.stride[0];
        put_all(row_of<T>(c, 1, m, c.size[K]), x, inverse_rms(x, c.size[K], c.scalar[0]), c.size[K]);
    }
}

}  // namespace

extern const Kernel RMSNORM[2] = {
    {"rmsnorm_i8", 3, 2, 1, shape_of_rows, {rmsnorm<int8_t>}},
    {"rmsnorm_f16", 2, 2, 1, shape_of_rows, {rmsnorm<half>}},
};

}  // namespace SIMD
}  // namespace quamba
