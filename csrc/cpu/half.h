/* f16 as memory holds it, and its conversion for places where no instruction does it. */
#pragma once
#include <stdint.h>

namespace quamba {

struct half {
    uint16_t bits;
};

inline float half_to_float(half h) {
    const uint32_t sign = uint32_t(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
    uint32_t out = (rest << 13) + (112u << 23);  // normal: the exponent's bias is 127 and not 15
    float value;
    if (rest >= 0x7c00) out = (rest << 13) | 0x7f800000;
    if (rest < 0x0400) {  // subnormal: rest * 2^-24
        value = float(rest) * 5.9604644775390625e-8f;
        __builtin_memcpy(&out, &value, 4);
    }
    out |= sign;
    __builtin_memcpy(&value, &out, 4);
    return value;
}

/* Rounded to nearest, ties to even; beyond 65504 infinity. */
inline half float_to_half(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (bits >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
    if (bits < 0x38800000) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded by the adder
        float small;
        __builtin_memcpy(&small, &bits, 4);
        small += 0.5f;
        __builtin_memcpy(&bits, &small, 4);
        return {uint16_t(sign | (bits - 0x3f000000))};
    }
    bits += 0xfff + (bits >> 13 & 1) - (112u << 23);
    return {uint16_t(sign | bits >> 13)};
}

}  // namespace quamba
