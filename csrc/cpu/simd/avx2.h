/* AVX2 with FMA and F16C: sixteen lanes are two registers.
 *
 * Its integer dots go through i16, three instructions where VNNI has one; avxvnni.h brings its own. */
#pragma once

#ifndef QUAMBA_VNNI256
constexpr int TILE_M = 4;  // tokens of a matrix product's tile: their sums are 8 registers of 16, i16 products take 4
constexpr int TILE_N = 1;  // blocks of 16 rows of it
constexpr int BIAS8 = 0;   // `codes8` adds this to 8-bit weights
#endif

struct f32x16 {
    __m256 lo, hi;
};
struct i32x16 {
    __m256i lo, hi;
};
struct bytes64 {
    __m256i lo, hi;
};

// ---- floats

/* Masks of lanes 0..7 and 8..15 that keep the first n. */
inline i32x16 first(int n) {
    alignas(64) static const int32_t keep[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    const int32_t* p = keep + 16 - n;
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline f32x16 set(float a) {
    return {_mm256_set1_ps(a), _mm256_set1_ps(a)};
}
inline f32x16 load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline f32x16 load(const float* p, int n) {
    if (n == 16) return load(p);
    const i32x16 keep = first(n);
    return {_mm256_maskload_ps(p, keep.lo), _mm256_maskload_ps(p + 8, keep.hi)};
}
inline f32x16 load(const half* p) {
    const __m128i* q = (const __m128i*)p;
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline f32x16 load(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
}
/* Halves and bytes have no masked moves: ends of rows go through a copy. */
template <class T>
inline f32x16 load(const T* p, int n) {
    if (n == 16) return load(p);
    T all[16] = {};
    __builtin_memcpy(all, p, size_t(n) * sizeof(T));
    return load(all);
}
inline void store(float* p, f32x16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline void store(float* p, f32x16 a, int n) {
    if (n == 16) return store(p, a);
    const i32x16 keep = first(n);
    _mm256_maskstore_ps(p, keep.lo, a.lo);
    _mm256_maskstore_ps(p + 8, keep.hi, a.hi);
}
inline void store(half* p, f32x16 a) {
    __m128i* q = (__m128i*)p;
    _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Codes: rounded, ties to even; the caller has clamped them. */
inline void store(int8_t* p, f32x16 a) {
    const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m256i words = _mm256_permute4x64_epi64(mixed, 0xD8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
template <class T>
inline void store(T* p, f32x16 a, int n) {
    if (n == 16) return store(p, a);
    T all[16];
    store(all, a);
    __builtin_memcpy(p, all, size_t(n) * sizeof(T));
}
inline f32x16 operator+(f32x16 a, f32x16 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline f32x16 operator-(f32x16 a, f32x16 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline f32x16 operator*(f32x16 a, f32x16 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline f32x16 operator/(f32x16 a, f32x16 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
/* a b + c */
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline f32x16 min(f32x16 a, f32x16 b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline f32x16 max(f32x16 a, f32x16 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline f32x16 abs(f32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline f32x16 round(f32x16 a) {
    return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 power2(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
/* a 2^n of whole n, -126 <= n <= 127 */
inline f32x16 scale2(f32x16 a, f32x16 n) {
    return {_mm256_mul_ps(a.lo, power2(n.lo)), _mm256_mul_ps(a.hi, power2(n.hi))};
}
inline float sum(f32x16 a) {
    const __m256 v = _mm256_add_ps(a.lo, a.hi);
    __m128 w = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    w = _mm_add_ps(w, _mm_movehl_ps(w, w));
    return _mm_cvtss_f32(_mm_add_ss(w, _mm_movehdup_ps(w)));
}
/* Lane i becomes lane i ^ H: the partners of a butterfly. */
template <int H>
inline f32x16 partner(f32x16 a) {
    if constexpr (H == 1) return {_mm256_permute_ps(a.lo, 0xB1), _mm256_permute_ps(a.hi, 0xB1)};
    if constexpr (H == 2) return {_mm256_permute_ps(a.lo, 0x4E), _mm256_permute_ps(a.hi, 0x4E)};
    if constexpr (H == 4) return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
    return {a.hi, a.lo};
}

// ---- integers

inline i32x16 zeros() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline i32x16 set_i32(int32_t a) {
    return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)};
}
inline i32x16 operator+(i32x16 a, i32x16 b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline i32x16 operator-(i32x16 a, i32x16 b) {
    return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
inline f32x16 to_float(i32x16 a) {
    return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
inline int32_t sum(i32x16 a) {
    const __m256i v = _mm256_add_epi32(a.lo, a.hi);
    __m128i w = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    w = _mm_add_epi32(w, _mm_shuffle_epi32(w, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(w, _mm_shuffle_epi32(w, 0xB1)));
}
inline bytes64 load64(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
/* Four bytes, in every lane. */
inline bytes64 repeat4(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}
inline bytes64 low_nibbles(bytes64 a) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline bytes64 high_nibbles(bytes64 a) {
    return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)});
}

#ifndef QUAMBA_VNNI256
/* a + unsigned bytes times signed ones, four a lane.  Pairs must fit i16: 2 * 15 * 127 and 2 * 127 * 127 do. */
inline __m256i add_products(__m256i a, __m256i w, __m256i x) {
    return _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
/* Lane sums of four products, added to `a`; w's bytes are 0..15, x's are -127..127. */
inline i32x16 dot4(i32x16 a, bytes64 w, bytes64 x) {
    return {add_products(a.lo, w.lo, x.lo), add_products(a.hi, w.hi, x.hi)};
}
/* 8-bit weights -127..127 in the form that `dot8` reads: here as they are. */
inline bytes64 codes8(bytes64 w) {
    return w;
}
/* w x = |w| (x with w's sign) */
inline i32x16 dot8(i32x16 a, bytes64 w, bytes64 x) {
    return {add_products(a.lo, _mm256_abs_epi8(w.lo), _mm256_sign_epi8(x.lo, w.lo)),
            add_products(a.hi, _mm256_abs_epi8(w.hi), _mm256_sign_epi8(x.hi, w.hi))};
}
#endif

/* WIDTH bits from bit SHIFT on of every 32-bit lane, signed, as floats. */
template <int SHIFT, int WIDTH>
inline f32x16 field(__m256i lo, __m256i hi) {
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(lo, 32 - WIDTH - SHIFT), 32 - WIDTH)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(hi, 32 - WIDTH - SHIFT), 32 - WIDTH))};
}
/* Nibble I of every 32-bit lane, minus 8, as a float: with its highest bit flipped it is a signed number. */
template <int I>
inline f32x16 nibble(bytes64 w) {
    const __m256i flip = _mm256_set1_epi32(int(0x88888888u));
    return field<4 * I, 4>(_mm256_xor_si256(w.lo, flip), _mm256_xor_si256(w.hi, flip));
}
/* Byte I of every 32-bit lane, signed, as a float. */
template <int I>
inline f32x16 byte(bytes64 w) {
    return field<8 * I, 8>(w.lo, w.hi);
}
inline void prefetch(const void* p) {
    _mm_prefetch((const char*)p, _MM_HINT_T0);
}
