/* The online rotation before out_proj, and the rounding that follows.
 *
 * A chunk is a few rows; each is rotated in scratch (rotate.h), then rounded. */
#include "rotate.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, K };

template <class T>
void hadamard(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[K]);
    float* v = reinterpret_cast<float*>(w.scratch);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const float* x = c.at<float>(0) + m * c.stride[0];
        __builtin_memcpy(v, x, sizeof(float) * size_t(c.size[K]));
        const float factor = rotate(v, c.size[K]);
        put_all(row_of<T>(c, 1, m, c.size[K]), v, factor, c.size[K]);
    }
}

}  // namespace

extern const Kernel HADAMARD[2] = {
    {"hadamard_i8", 3, 2, 0, shape_of_copied_rows, {hadamard<int8_t>}},
    {"hadamard_f16", 2, 2, 0, shape_of_copied_rows, {hadamard<half>}},
};

}  // namespace SIMD
}  // namespace quamba
