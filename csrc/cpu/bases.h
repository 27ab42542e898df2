#pragma once

namespace quamba {

/* Base b = 12, 20 or 28 of the rotation, row-major (b, b), or its transpose; null for any other. */
const float* base_matrix(int b, bool transposed);

}  // namespace quamba
