/* The five products: which weights meet which tokens, for linear.cu and linear_chunk.cu. */
#pragma once
#include "tiles.cuh"

namespace quamba {

/* How a kind of weights and of tokens multiply.  Sum is what crosses groups, Part what an mma adds to. */
struct W4A8 {
    using Weights = Weights4;
    using Tokens = Tokens8;
    using X = int8_t;
    using Part = int32_t;
    using Sum = float;
    static constexpr bool GROUPS = true;
    static constexpr float FACTOR = 1.0f / 16.0f;
};
struct W8A8 : W4A8 {
    using Weights = Weights8;
    using Sum = int32_t;
    static constexpr bool GROUPS = false;
    static constexpr float FACTOR = 1.0f;
};
struct W4A16 {
    using Weights = Weights4;
    using Tokens = Tokens16<Weights::PAIRS>;
    using X = half;
    using Part = float;
    using Sum = float;
    static constexpr bool GROUPS = true;
    static constexpr float FACTOR = 1.0f;
};
struct W8A16 : W4A16 {
    using Weights = Weights8;
    using Tokens = Tokens16<Weights::PAIRS>;
    static constexpr bool GROUPS = false;
};
struct W16A16 : W8A16 {
    using Weights = Weights16;
    using Tokens = Tokens16<Weights::PAIRS>;
};

}  // namespace quamba
