/* The kernels of one instruction set; compiled once for each, like the ops. */
#include "kernels.h"

#include "simd.h"

namespace quamba {
namespace SIMD {

extern const Kernel EMBED[3], RMSNORM[2], TIED_NORM[2], LINEAR[5], CONV_SILU[2], SSD[2], SCAN[2], GATED_NORM[1], HADAMARD[2],
    QUANTIZE[2], PART_NORM[1];

void peak(double limit, double* dots, double* fmas);

namespace {

struct All {
    Kernel kernels[24];
    int count = 0;

    template <int N>
    void add(const Kernel (&some)[N]) {
        for (const Kernel& kernel : some) kernels[count++] = kernel;
    }
    All() {
        add(EMBED), add(RMSNORM), add(TIED_NORM), add(LINEAR), add(CONV_SILU), add(SSD), add(SCAN), add(GATED_NORM);
        add(HADAMARD), add(QUANTIZE), add(PART_NORM);
    }
};

}  // namespace

Table table() {
    static const All all;
    return {QUAMBA_TEXT(SIMD), all.kernels, all.count, peak};
}

}  // namespace SIMD
}  // namespace quamba
