/* Rows as codes or f16, nothing else.  A chunk is a few rows. */
#include "rows.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, K };

template <class T>
void quantize(const Call& c, const Work& w) {
    const Split split = rows(c, c.size[M], c.size[K]);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        put_all(row_of<T>(c, 1, m, c.size[K]), c.at<float>(0) + m * c.stride[0], 1.0f, c.size[K]);
    }
}

}  // namespace

extern const Kernel QUANTIZE[2] = {
    {"quantize_i8", 3, 2, 0, shape_of_rows, {quantize<int8_t>}},
    {"quantize_f16", 2, 2, 0, shape_of_rows, {quantize<half>}},
};

}  // namespace SIMD
}  // namespace quamba
