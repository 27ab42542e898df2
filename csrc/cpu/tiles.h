/* How the tokens of a product are cut into tiles, and where a tile's tokens lie once they are packed.
 *
 * Packed, a tile of MR tokens is a run of words (columns, MR): the kernels walk it with one pointer.  A decode step's single token
 * lies so already. */
#pragma once
#include "weights.h"

namespace quamba {
namespace SIMD {

/* The tile sizes that kernels are compiled for: TILE_M, then 8 if that is less, then halves. */
constexpr int smaller(int tile) {
    return tile > 8 ? 8 : tile / 2;
}

struct Tile {
    int64_t m;  // first token
    int count;
};

/* The largest tile that fits at token m of M. */
inline Tile tile_at(int64_t m, int64_t M) {
    int count = TILE_M;
    while (count > M - m) count = smaller(count);
    return {m, count};
}

inline int tile_count(int64_t M) {
    int tiles = 0;
    for (int64_t m = 0; m < M; m += tile_at(m, M).count) tiles++;
    return tiles;
}

inline Tile tile_number(int i, int64_t M) {
    int64_t m = 0;
    while (i--) m += tile_at(m, M).count;
    return tile_at(m, M);
}

inline int64_t whole_steps(int64_t K) {
    return (K + STEP - 1) / STEP * STEP;
}

}  // namespace SIMD
}  // namespace quamba
