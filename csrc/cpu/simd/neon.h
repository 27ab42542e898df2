/* aarch64 with dot products and f16 conversions (ARMv8.2: Cortex-A76, A78AE): sixteen lanes are four registers. */
#pragma once

constexpr int TILE_M = 4;  // tokens of a matrix product's tile: their sums are 16 registers of 32
constexpr int TILE_N = 1;  // blocks of 16 rows of it
constexpr int BIAS8 = 0;   // `codes8` adds this to 8-bit weights

struct f32x16 {
    float32x4_t a, b, c, d;
};
struct i32x16 {
    int32x4_t a, b, c, d;
};
struct bytes64 {
    uint8x16_t a, b, c, d;
};

// ---- floats

inline f32x16 set(float x) {
    return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)};
}
inline f32x16 load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
inline f32x16 load(const half* p) {
    const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16((const uint16_t*)p));
    const float16x8_t y = vreinterpretq_f16_u16(vld1q_u16((const uint16_t*)p + 8));
    return {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
}
inline f32x16 load(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t x = vmovl_s8(vget_low_s8(bytes)), y = vmovl_high_s8(bytes);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_high_s16(x)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(y))), vcvtq_f32_s32(vmovl_high_s16(y))};
}
/* No masked moves: ends of rows go through a copy. */
template <class T>
inline f32x16 load(const T* p, int n) {
    if (n == 16) return load(p);
    T all[16] = {};
    __builtin_memcpy(all, p, size_t(n) * sizeof(T));
    return load(all);
}
inline void store(float* p, f32x16 v) {
    vst1q_f32(p, v.a), vst1q_f32(p + 4, v.b), vst1q_f32(p + 8, v.c), vst1q_f32(p + 12, v.d);
}
inline void store(half* p, f32x16 v) {
    vst1q_u16((uint16_t*)p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.a), v.b)));
    vst1q_u16((uint16_t*)p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.c), v.d)));
}
/* Codes: rounded, ties to even; the caller has clamped them. */
inline void store(int8_t* p, f32x16 v) {
    const int16x8_t x = vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(v.a)), vcvtnq_s32_f32(v.b));
    const int16x8_t y = vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(v.c)), vcvtnq_s32_f32(v.d));
    vst1q_s8(p, vmovn_high_s16(vmovn_s16(x), y));
}
template <class T>
inline void store(T* p, f32x16 v, int n) {
    if (n == 16) return store(p, v);
    T all[16];
    store(all, v);
    __builtin_memcpy(p, all, size_t(n) * sizeof(T));
}
inline f32x16 operator+(f32x16 x, f32x16 y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
inline f32x16 operator-(f32x16 x, f32x16 y) {
    return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
inline f32x16 operator*(f32x16 x, f32x16 y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
inline f32x16 operator/(f32x16 x, f32x16 y) {
    return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
}
/* x y + z */
inline f32x16 fma(f32x16 x, f32x16 y, f32x16 z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
/* Where x is NaN it is y, as on x86: vminq would hand the NaN on. */
inline f32x16 min(f32x16 x, f32x16 y) {
    return {vminnmq_f32(x.a, y.a), vminnmq_f32(x.b, y.b), vminnmq_f32(x.c, y.c), vminnmq_f32(x.d, y.d)};
}
inline f32x16 max(f32x16 x, f32x16 y) {
    return {vmaxnmq_f32(x.a, y.a), vmaxnmq_f32(x.b, y.b), vmaxnmq_f32(x.c, y.c), vmaxnmq_f32(x.d, y.d)};
}
inline f32x16 abs(f32x16 x) {
    return {vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)};
}
inline f32x16 round(f32x16 x) {
    return {vrndnq_f32(x.a), vrndnq_f32(x.b), vrndnq_f32(x.c), vrndnq_f32(x.d)};
}
inline float32x4_t power2(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
/* x 2^n of whole n, -126 <= n <= 127 */
inline f32x16 scale2(f32x16 x, f32x16 n) {
    return x * f32x16{power2(n.a), power2(n.b), power2(n.c), power2(n.d)};
}
inline float sum(f32x16 x) {
    const float32x4_t v = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    const float32x2_t w = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(vpadd_f32(w, w), 0);
}
/* Lane i becomes lane i ^ H: the partners of a butterfly. */
template <int H>
inline f32x16 partner(f32x16 x) {
    if constexpr (H == 1) return {vrev64q_f32(x.a), vrev64q_f32(x.b), vrev64q_f32(x.c), vrev64q_f32(x.d)};
    if constexpr (H == 2)
        return {vextq_f32(x.a, x.a, 2), vextq_f32(x.b, x.b, 2), vextq_f32(x.c, x.c, 2), vextq_f32(x.d, x.d, 2)};
    if constexpr (H == 4) return {x.b, x.a, x.d, x.c};
    return {x.c, x.d, x.a, x.b};
}

// ---- integers

inline i32x16 set_i32(int32_t x) {
    return {vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)};
}
inline i32x16 zeros() {
    return set_i32(0);
}
inline i32x16 operator+(i32x16 x, i32x16 y) {
    return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)};
}
inline i32x16 operator-(i32x16 x, i32x16 y) {
    return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b), vsubq_s32(x.c, y.c), vsubq_s32(x.d, y.d)};
}
inline f32x16 to_float(i32x16 x) {
    return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)};
}
inline int32_t sum(i32x16 x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
}
inline bytes64 load64(const void* p) {
    const uint8_t* q = (const uint8_t*)p;
    return {vld1q_u8(q), vld1q_u8(q + 16), vld1q_u8(q + 32), vld1q_u8(q + 48)};
}
/* Four bytes, in every lane. */
inline bytes64 repeat4(const void* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    const uint8x16_t x = vreinterpretq_u8_u32(vdupq_n_u32(four));
    return {x, x, x, x};
}
inline bytes64 low_nibbles(bytes64 x) {
    const uint8x16_t mask = vdupq_n_u8(15);
    return {vandq_u8(x.a, mask), vandq_u8(x.b, mask), vandq_u8(x.c, mask), vandq_u8(x.d, mask)};
}
inline bytes64 high_nibbles(bytes64 x) {
    return {vshrq_n_u8(x.a, 4), vshrq_n_u8(x.b, 4), vshrq_n_u8(x.c, 4), vshrq_n_u8(x.d, 4)};
}
inline int32x4_t add_products(int32x4_t sum, uint8x16_t w, uint8x16_t x) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
}
/* Lane sums of four products, added to `sum`; signed bytes. */
inline i32x16 dot8(i32x16 sum, bytes64 w, bytes64 x) {
    return {add_products(sum.a, w.a, x.a), add_products(sum.b, w.b, x.b), add_products(sum.c, w.c, x.c),
            add_products(sum.d, w.d, x.d)};
}
inline i32x16 dot4(i32x16 sum, bytes64 w, bytes64 x) {
    return dot8(sum, w, x);
}
/* 8-bit weights in the form that `dot8` reads: as they are. */
inline bytes64 codes8(bytes64 w) {
    return w;
}
/* The conversion divides by 2^(4I) what the mask has left in place; shifts have one pipe of two in Cortex-A78. */
template <int I>
inline float32x4_t nibble_of(uint8x16_t w) {
    const uint32x4_t in_place = vandq_u32(vreinterpretq_u32_u8(w), vdupq_n_u32(15u << 4 * I));
    if constexpr (I == 0) return vsubq_f32(vcvtq_f32_u32(in_place), vdupq_n_f32(8.0f));
    else return vsubq_f32(vcvtq_n_f32_u32(in_place, 4 * I), vdupq_n_f32(8.0f));
}
/* Nibble I of every 32-bit lane, minus 8, as a float. */
template <int I>
inline f32x16 nibble(bytes64 w) {
    return {nibble_of<I>(w.a), nibble_of<I>(w.b), nibble_of<I>(w.c), nibble_of<I>(w.d)};
}
template <int I>
inline float32x4_t byte_of(uint8x16_t w) {
    const int32x4_t high = vshlq_n_s32(vreinterpretq_s32_u8(w), 24 - 8 * I);
    return vcvtq_n_f32_s32(vandq_s32(high, vdupq_n_s32(int32_t(0xff000000u))), 24);
}
/* Byte I of every 32-bit lane, signed, as a float. */
template <int I>
inline f32x16 byte(bytes64 w) {
    return {byte_of<I>(w.a), byte_of<I>(w.b), byte_of<I>(w.c), byte_of<I>(w.d)};
}
inline void prefetch(const void* p) {
    __builtin_prefetch(p);
}
