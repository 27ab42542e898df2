/* The bases of the rotation, quamba_edge/rotation.py's base_matrix: bit k of row i is set where element [i][k] is -1.
 *
 * Written out by that file's rule (Paley 1933; 12 and 20 of the first type, 28 of the second); tests/native/test_bases.py compares. */
#pragma once
#include <stdint.h>
#ifdef __CUDACC__
#define QUAMBA_TABLE __constant__ const
#else
#define QUAMBA_TABLE constexpr
#endif

namespace quamba {

QUAMBA_TABLE uint32_t BASE_12[12] = {
    0x0000000, 0x0000475, 0x00008e9, 0x00001d3, 0x00003a5, 0x0000749, 0x0000e91, 0x0000d23,
    0x0000a47, 0x000048f, 0x000091d, 0x000023b,
};
QUAMBA_TABLE uint32_t BASE_20[20] = {
    0x0000000, 0x00615e5, 0x00c2bc9, 0x0085793, 0x000af27, 0x0015e4d, 0x002bc99, 0x0057931,
    0x00af261, 0x005e4c3, 0x00bc985, 0x007930b, 0x00f2615, 0x00e4c2b, 0x00c9857, 0x00930af,
    0x002615f, 0x004c2bd, 0x0098579, 0x0030af3,
};
QUAMBA_TABLE uint32_t BASE_28[28] = {
    0x0000002, 0xaaaaaab, 0x30ff0c8, 0x9a55a6e, 0xc3fc320, 0x69569ba, 0x0ff0c8c, 0xa55a6e6,
    0x3fc3230, 0x9569b9a, 0xff0c8c0, 0x55a6e6a, 0xfc3230c, 0x569b9a6, 0xf0c8c3c, 0x5a6e696,
    0xc3230fc, 0x69b9a56, 0x0c8c3fc, 0xa6e6956, 0x3230ff0, 0x9b9a55a, 0xc8c3fc0, 0x6e6956a,
    0x230ff0c, 0xb9a55a6, 0x8c3fc30, 0xe69569a,
};

}  // namespace quamba
