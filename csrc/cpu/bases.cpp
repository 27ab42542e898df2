/* The rotation's bases as floats, compiled once without any special instructions. */
#include "bases.h"

#include "../common/bases.h"

namespace quamba {

namespace {

template <int B>
struct Base {
    float of[2][B][B];

    explicit Base(const uint32_t (&minus)[B]) {
        for (int i = 0; i < B; i++)
            for (int k = 0; k < B; k++) of[0][i][k] = of[1][k][i] = minus[i] >> k & 1 ? -1.0f : 1.0f;
    }
};

}  // namespace

const float* base_matrix(int b, bool transposed) {
    static const Base<12> twelve(BASE_12);
    static const Base<20> twenty(BASE_20);
    static const Base<28> twenty_eight(BASE_28);
    if (b == 12) return &twelve.of[transposed][0][0];
    if (b == 20) return &twenty.of[transposed][0][0];
    return b == 28 ? &twenty_eight.of[transposed][0][0] : nullptr;
}

}  // namespace quamba
