/* AVX2 and AVX-VNNI: as avx2.h, but an integer dot is one instruction a register. */
#pragma once

#define QUAMBA_VNNI256
#include "avx2.h"

constexpr int TILE_M = 4;   // tokens of a matrix product's tile: 6 fit beside their codes, but gcc then spills them
constexpr int TILE_N = 1;   // blocks of 16 rows of it
constexpr int BIAS8 = 128;  // `codes8` adds this to 8-bit weights

/* Lane sums of four products, added to `a`; w's bytes are 0..15, x's are -127..127. */
inline i32x16 dot4(i32x16 a, bytes64 w, bytes64 x) {
    return {_mm256_dpbusd_avx_epi32(a.lo, w.lo, x.lo), _mm256_dpbusd_avx_epi32(a.hi, w.hi, x.hi)};
}
/* 8-bit weights -127..127 in the form that `dot8` reads: here + BIAS8, as VNNI multiplies unsigned by signed. */
inline bytes64 codes8(bytes64 w) {
    const __m256i flip = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(w.lo, flip), _mm256_xor_si256(w.hi, flip)};
}
inline i32x16 dot8(i32x16 a, bytes64 w, bytes64 x) {
    return dot4(a, w, x);
}
