/* Sixteen lanes as an array: what any compiler turns into what it knows.  Also says what each function means. */
#pragma once

constexpr int TILE_M = 4;
constexpr int TILE_N = 1;
constexpr int BIAS8 = 0;

struct f32x16 {
    float v[16];
};
struct i32x16 {
    int32_t v[16];
};
struct bytes64 {
    uint8_t v[64];
};

template <class R, class F>
inline R lanes(F f) {
    R r;
    for (int i = 0; i < 16; i++) r.v[i] = f(i);
    return r;
}

// ---- floats

inline f32x16 set(float a) {
    return lanes<f32x16>([&](int) { return a; });
}
inline float one(float a) {
    return a;
}
inline float one(half a) {
    return half_to_float(a);
}
inline float one(int8_t a) {
    return float(a);
}
inline void put(float* p, float a) {
    *p = a;
}
inline void put(half* p, float a) {
    *p = float_to_half(a);
}
/* Ties to even, without the math library's rounding mode: adding 1.5 * 2^23 leaves no bits below one. */
inline float nearest(float a) {
    float big = a + 12582912.0f;
    asm volatile("" : "+g"(big));  // keeps a compiler that reorders floats from removing it
    return big - 12582912.0f;
}
inline void put(int8_t* p, float a) {
    *p = int8_t(nearest(a));
}
/* n lanes from memory, zeros behind them. */
template <class T>
inline f32x16 load(const T* p, int n = 16) {
    return lanes<f32x16>([&](int i) { return i < n ? one(p[i]) : 0.0f; });
}
template <class T>
inline void store(T* p, f32x16 a, int n = 16) {
    for (int i = 0; i < n; i++) put(p + i, a.v[i]);
}
inline f32x16 operator+(f32x16 a, f32x16 b) {
    return lanes<f32x16>([&](int i) { return a.v[i] + b.v[i]; });
}
inline f32x16 operator-(f32x16 a, f32x16 b) {
    return lanes<f32x16>([&](int i) { return a.v[i] - b.v[i]; });
}
inline f32x16 operator*(f32x16 a, f32x16 b) {
    return lanes<f32x16>([&](int i) { return a.v[i] * b.v[i]; });
}
inline f32x16 operator/(f32x16 a, f32x16 b) {
    return lanes<f32x16>([&](int i) { return a.v[i] / b.v[i]; });
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    return lanes<f32x16>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline f32x16 min(f32x16 a, f32x16 b) {
    return lanes<f32x16>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline f32x16 max(f32x16 a, f32x16 b) {
    return lanes<f32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline f32x16 abs(f32x16 a) {
    return lanes<f32x16>([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
}
inline f32x16 round(f32x16 a) {
    return lanes<f32x16>([&](int i) { return nearest(a.v[i]); });
}
inline f32x16 scale2(f32x16 a, f32x16 n) {
    return lanes<f32x16>([&](int i) {
        uint32_t bits = uint32_t(int32_t(n.v[i]) + 127) << 23;
        float power;
        __builtin_memcpy(&power, &bits, 4);
        return a.v[i] * power;
    });
}
inline float sum(f32x16 a) {
    for (int h = 8; h; h /= 2)
        for (int i = 0; i < h; i++) a.v[i] += a.v[i + h];
    return a.v[0];
}
template <int H>
inline f32x16 partner(f32x16 a) {
    return lanes<f32x16>([&](int i) { return a.v[i ^ H]; });
}

// ---- integers

inline i32x16 set_i32(int32_t a) {
    return lanes<i32x16>([&](int) { return a; });
}
inline i32x16 zeros() {
    return set_i32(0);
}
inline i32x16 operator+(i32x16 a, i32x16 b) {
    return lanes<i32x16>([&](int i) { return int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i])); });
}
inline i32x16 operator-(i32x16 a, i32x16 b) {
    return lanes<i32x16>([&](int i) { return a.v[i] - b.v[i]; });
}
inline f32x16 to_float(i32x16 a) {
    return lanes<f32x16>([&](int i) { return float(a.v[i]); });
}
inline int32_t sum(i32x16 a) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += a.v[i];
    return total;
}
inline bytes64 load64(const void* p) {
    bytes64 r;
    __builtin_memcpy(r.v, p, 64);
    return r;
}
inline bytes64 repeat4(const void* p) {
    bytes64 r;
    for (int i = 0; i < 64; i++) r.v[i] = ((const uint8_t*)p)[i % 4];
    return r;
}
inline bytes64 low_nibbles(bytes64 a) {
    for (int i = 0; i < 64; i++) a.v[i] &= 15;
    return a;
}
inline bytes64 high_nibbles(bytes64 a) {
    for (int i = 0; i < 64; i++) a.v[i] >>= 4;
    return a;
}
inline i32x16 dot8(i32x16 a, bytes64 w, bytes64 x) {
    for (int i = 0; i < 16; i++)
        for (int k = 4 * i; k < 4 * i + 4; k++) a.v[i] += int8_t(w.v[k]) * int8_t(x.v[k]);
    return a;
}
inline i32x16 dot4(i32x16 a, bytes64 w, bytes64 x) {
    return dot8(a, w, x);
}
inline bytes64 codes8(bytes64 w) {
    return w;
}
template <int I>
inline f32x16 nibble(bytes64 w) {
    return lanes<f32x16>([&](int i) { return float((w.v[4 * i + I / 2] >> (I % 2 * 4) & 15) - 8); });
}
template <int I>
inline f32x16 byte(bytes64 w) {
    return lanes<f32x16>([&](int i) { return float(int8_t(w.v[4 * i + I])); });
}
inline void prefetch(const void* p) {
    __builtin_prefetch(p);
}
