/* Rows as codes or f16, nothing else.  A chunk is a few rows. */
#include "rows.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, K };

Shape shape(const Call& c) {
    return {{rows(c, c.size[M], c.size[K]).chunks()}, 0, 0};
}

template <class T>
void quantize(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[K]);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const float* x = c.at<float>(0) + m * c.stride[0];
        const Row<T> y = row_of<T>(c, 1, m, c.size[K]);
        for (int64_t i = 0; i < c.size[K]; i += LANES) {
            const int n = lanes_at(i, c.size[K]);
            y.put(i, load(x + i, n), n);
        }
    }
}

}  // namespace

extern const Kernel QUANTIZE[2] = {
    {"quantize_i8", 3, 2, 0, shape, {quantize<int8_t>}},
    {"quantize_f16", 2, 2, 0, shape, {quantize<half>}},
};

}  // namespace SIMD
}  // namespace quamba
