/* The online rotation before out_proj, and the rounding that follows.
 *
 * A chunk is a few rows; each is rotated in scratch (rotate.h), then rounded. */
#include "rotate.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, K };

Shape shape(const Call& c) {
    return {{rows(c, c.size[M], c.size[K]).chunks()}, 0, sizeof(float) * size_t(c.size[K])};
}

template <class T>
void hadamard(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[K]);
    float* v = reinterpret_cast<float*>(w.scratch);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const float* x = c.at<float>(0) + m * c.stride[0];
        __builtin_memcpy(v, x, sizeof(float) * size_t(c.size[K]));
        const f32x16 factor = set(rotate(v, c.size[K]));
        const Row<T> y = row_of<T>(c, 1, m, c.size[K]);
        for (int64_t i = 0; i < c.size[K]; i += LANES) {
            const int n = lanes_at(i, c.size[K]);
            y.put(i, load(v + i, n) * factor, n);
        }
    }
}

}  // namespace

extern const Kernel HADAMARD[2] = {
    {"hadamard_i8", 3, 2, 0, shape, {hadamard<int8_t>}},
    {"hadamard_f16", 2, 2, 0, shape, {hadamard<half>}},
};

}  // namespace SIMD
}  // namespace quamba
