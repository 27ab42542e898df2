/* AVX-512 (F, BW, VL, DQ) with VNNI: sixteen lanes are one register. */
#pragma once

constexpr int TILE_M = 12;  // tokens of a matrix product's tile: 12 x 2 sums leave 8 registers for weights and tokens
constexpr int TILE_N = 2;   // blocks of 16 rows of it
constexpr int BIAS8 = 128;  // `codes8` adds this to 8-bit weights

struct f32x16 {
    __m512 v;
};
struct i32x16 {
    __m512i v;
};
struct bytes64 {
    __m512i v;
};

// ---- floats

inline __mmask16 first(int n) {
    return __mmask16((1u << n) - 1);
}
inline f32x16 set(float a) {
    return {_mm512_set1_ps(a)};
}
inline f32x16 load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
inline f32x16 load(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(first(n), p)};
}
inline f32x16 load(const half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
inline f32x16 load(const half* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
}
inline f32x16 load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline f32x16 load(const int8_t* p, int n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
}
inline void store(float* p, f32x16 a) {
    _mm512_storeu_ps(p, a.v);
}
inline void store(float* p, f32x16 a, int n) {
    _mm512_mask_storeu_ps(p, first(n), a.v);
}
inline void store(half* p, f32x16 a) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(half* p, f32x16 a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Codes: rounded, ties to even; the caller has clamped them. */
inline void store(int8_t* p, f32x16 a, int n = 16) {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline f32x16 operator+(f32x16 a, f32x16 b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline f32x16 operator-(f32x16 a, f32x16 b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
inline f32x16 operator*(f32x16 a, f32x16 b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline f32x16 operator/(f32x16 a, f32x16 b) {
    return {_mm512_div_ps(a.v, b.v)};
}
/* a b + c */
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline f32x16 min(f32x16 a, f32x16 b) {
    return {_mm512_min_ps(a.v, b.v)};
}
inline f32x16 max(f32x16 a, f32x16 b) {
    return {_mm512_max_ps(a.v, b.v)};
}
inline f32x16 abs(f32x16 a) {
    return {_mm512_abs_ps(a.v)};
}
inline f32x16 round(f32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/* a 2^n of whole n, -127 <= n <= 127 */
inline f32x16 scale2(f32x16 a, f32x16 n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}
inline float sum(f32x16 a) {
    return _mm512_reduce_add_ps(a.v);
}
/* Lane i becomes lane i ^ H: the partners of a butterfly. */
template <int H>
inline f32x16 partner(f32x16 a) {
    if constexpr (H == 1) return {_mm512_permute_ps(a.v, 0xB1)};
    if constexpr (H == 2) return {_mm512_permute_ps(a.v, 0x4E)};
    if constexpr (H == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xB1)};
    return {_mm512_shuffle_f32x4(a.v, a.v, 0x4E)};
}

// ---- integers

inline i32x16 zeros() {
    return {_mm512_setzero_si512()};
}
inline i32x16 set_i32(int32_t a) {
    return {_mm512_set1_epi32(a)};
}
inline i32x16 operator+(i32x16 a, i32x16 b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
inline i32x16 operator-(i32x16 a, i32x16 b) {
    return {_mm512_sub_epi32(a.v, b.v)};
}
inline f32x16 to_float(i32x16 a) {
    return {_mm512_cvtepi32_ps(a.v)};
}
inline int32_t sum(i32x16 a) {
    return _mm512_reduce_add_epi32(a.v);
}
inline bytes64 load64(const void* p) {
    return {_mm512_loadu_si512(p)};
}
/* Four bytes, in every lane. */
inline bytes64 repeat4(const void* p) {
    return {_mm512_set1_epi32(*(const int32_t*)p)};
}
inline bytes64 low_nibbles(bytes64 a) {
    return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))};
}
inline bytes64 high_nibbles(bytes64 a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
/* Lane sums of four products, added to `a`; w's bytes are 0..15, x's are -127..127.  In assembly because gcc 12 copies and spills the
 * sums around the intrinsic: a prefill tile ran at 279 and not at 402 G multiply-adds a second (lab/log.md). */
inline i32x16 dot4(i32x16 a, bytes64 w, bytes64 x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(a.v) : "v"(w.v), "v"(x.v));
    return a;
}
/* 8-bit weights -127..127 in the form that `dot8` reads: here + BIAS8, as VNNI multiplies unsigned by signed. */
inline bytes64 codes8(bytes64 w) {
    return {_mm512_xor_si512(w.v, _mm512_set1_epi8(-128))};
}
inline i32x16 dot8(i32x16 a, bytes64 w, bytes64 x) {
    return dot4(a, w, x);
}
/* Nibble I of every 32-bit lane, minus 8, as a float. */
template <int I>
inline f32x16 nibble(bytes64 w) {
    const __m512 value = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.v, 4 * I), value)};
}
/* Byte I of every 32-bit lane, signed, as a float. */
template <int I>
inline f32x16 byte(bytes64 w) {
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(w.v, 24 - 8 * I), 24))};
}
inline void prefetch(const void* p) {
    _mm_prefetch((const char*)p, _MM_HINT_T0);
}
