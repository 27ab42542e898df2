/* The final norm of a tied model: in a rotated bundle rotate(weight * unrotate(rms(x))), else weight * rms(x).
 *
 * Once a token, some thousand values: a chunk is a row. */
#include "rotate.h"

namespace quamba {
namespace SIMD {

namespace {

enum Sizes { M, K, ROTATE };

template <class T>
void tied_norm(const Call& c, const Work& w) {
    const int64_t columns = c.size[K];
    const Split split = rows(c, c.size[M], columns);
    float* v = reinterpret_cast<float*>(w.scratch);
    const float* weight = c.at<float>(1);
    for (int64_t m = split.begin(w.chunk); m < split.end(w.chunk); m++) {
        const float* x = c.at<float>(0) + m * c.stride[0];
        float factor = inverse_rms(x, columns, c.scalar[0]);
        __builtin_memcpy(v, x, sizeof(float) * size_t(columns));
        if (c.size[ROTATE]) factor *= rotate(v, columns, true);
        for (int64_t i = 0; i < columns; i += LANES) {
            const int n = lanes_at(i, columns);
            store(v + i, load(v + i, n) * set(factor) * load(weight + i, n), n);
        }
        const float last = c.size[ROTATE] ? rotate(v, columns) : 1.0f;
        put_all(row_of<T>(c, 2, m, columns), v, last, columns);
    }
}

}  // namespace

extern const Kernel TIED_NORM[2] = {
    {"tied_norm_i8", 4, 3, 1, shape_of_copied_rows, {tied_norm<int8_t>}},
    {"tied_norm_f16", 3, 3, 1, shape_of_copied_rows, {tied_norm<half>}},
};

}  // namespace SIMD
}  // namespace quamba
