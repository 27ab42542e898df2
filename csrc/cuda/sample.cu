/* The next token from V logits, by the rule of quamba_edge/runtime/sampling.py and with its random number; 4 bytes go
 * back to the host.
 *
 *     sample_values   penalties and bias into a copy of the logits, and the peak of each piece; grid V / PIECE
 *     sample_shares   what each piece has of all chances, and how many logits lie how far below the peak
 *     sample_draw     one block: the largest; or a walk through the pieces; or the likeliest LOOK, sorted and cut
 *
 * Chances are doubles, as in the rule, so that the token is the rule's: sums in another order differ in the last bit.
 * Three passes over 4 V bytes that stay in the L2 (1 MB at V = 256000, beside 541 MB of that head with 4 bits); what
 * counts is the exponentials, some 20 double operations each at two a clock and multiprocessor.
 *
 * `how` is SETTINGS doubles (named in common/sampling.cuh), then EDIT for each token whose logit is changed: id, bias,
 * what a positive logit is divided by and another multiplied with, what is subtracted. */
#include "../common/sampling.cuh"

extern "C" __global__ void __launch_bounds__(256)
    sample_values(const float* logits, const double* how, float* values, float* peaks, int* places, int* bins, int V) {
    using namespace quamba;
    using namespace quamba::sample;
    QUAMBA_SHARED(float, piece);  // (PIECE), then the 256 largest, then their places
    const int start = blockIdx.x * PIECE, count = min(PIECE, V - start), edits = int(how[EDITS]);
    bool broken = false;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        piece[i] = logits[start + i];
        broken |= !(piece[i] < INFINITY);
    }
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < BINS; i += gridDim.x * blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int e = threadIdx.x; e < edits; e += blockDim.x) {
        const double* edit = how + SETTINGS + EDIT * e;
        const int i = int(edit[0]) - start;
        if (i < 0 || i >= count) continue;
        double v = double(piece[i]) + edit[1];
        v = v > 0.0 ? v / edit[2] : __dmul_rn(v, edit[2]);
        piece[i] = float(__dsub_rn(v, edit[3]));
        broken |= !(piece[i] < INFINITY);
    }
    __syncthreads();
    float best = -INFINITY;
    int place = start;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        values[start + i] = piece[i];
        if (piece[i] > best) best = piece[i], place = start + i;
    }
    const float peak = peak_of(broken ? INFINITY : best, place, piece + PIECE,
                               reinterpret_cast<int*>(piece + PIECE + blockDim.x), &place);
    if (threadIdx.x == 0) peaks[blockIdx.x] = peak, places[blockIdx.x] = place;
}

extern "C" __global__ void __launch_bounds__(256)
    sample_shares(const float* values, const double* how, const float* peaks, double* shares, int* bins, int V) {
    using namespace quamba;
    using namespace quamba::sample;
    QUAMBA_SHARED(double, sums);  // (256), then the bins
    int* mine = reinterpret_cast<int*>(sums + blockDim.x);
    const int start = blockIdx.x * PIECE, count = min(PIECE, V - start), pieces = gridDim.x;
    float peak = -INFINITY;
    for (int i = 0; i < pieces; i++) peak = fmaxf(peak, peaks[i]);
    const bool nothing = how[TEMPERATURE] == 0.0 || !(fabsf(peak) < INFINITY), all = !unsorted(how);
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    double sum = 0.0;
    for (int i = threadIdx.x; i < count && !nothing; i += blockDim.x) {
        const float value = values[start + i];
        const double chance = chance_of(value, peak, how[TEMPERATURE]);
        if (all || chance >= how[MIN_P]) sum += chance;
        const int bin = all ? bin_of(value, peak) : BINS;
        if (bin < BINS) atomicAdd(mine + bin, 1);
    }
    sums[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) shares[blockIdx.x] = sums[0];
    for (int i = threadIdx.x; i < BINS; i += blockDim.x)
        if (mine[i]) atomicAdd(bins + i, mine[i]);
}

extern "C" __global__ void __launch_bounds__(1024)
    sample_draw(const float* values, const double* how, const float* peaks, const int* places, const double* shares,
                const int* bins, int* token, int V) {
    using namespace quamba;
    using namespace quamba::sample;
    QUAMBA_SHARED(double, sums);  // (LOOK), then keys of the same size, then an int
    int* room = reinterpret_cast<int*>(sums + 2 * LOOK);
    const int i = threadIdx.x, pieces = (V + PIECE - 1) / PIECE;
    int first, chosen;
    const float peak = peak_of(i < pieces ? peaks[i] : -INFINITY, i < pieces ? places[i] : V,
                               reinterpret_cast<float*>(sums), reinterpret_cast<int*>(sums + LOOK), &first);
    if (!(fabsf(peak) < INFINITY)) chosen = BROKEN;
    else if (how[TEMPERATURE] == 0.0) chosen = first;
    else if (unsorted(how)) chosen = walk(how, values, shares, peak, V, sums, room);
    else chosen = cut(how, values, shares, bins, peak, V, sums, room);
    if (i == 0) *token = chosen;
}
