/* y[s] = the first place of the largest of V logits, token ids below V_true only; 4 bytes go back to the host.
 *
 * A block is a sequence, one pass over 4 V bytes: 1 MB at V = 256000, next to 541 MB of that head with 4 bits. */
#include "../common/device.cuh"

extern "C" __global__ void argmax(const float* x, int* y, int V, int V_true) {
    using namespace quamba;
    QUAMBA_SHARED(float, values);
    int* places = reinterpret_cast<int*>(values + blockDim.x);
    x += size_t(blockIdx.x) * V;
    float best = -INFINITY;
    int place = V_true;
    for (int i = threadIdx.x; i < V_true; i += blockDim.x)
        if (x[i] > best || place == V_true) best = x[i], place = i;
    values[threadIdx.x] = best;
    places[threadIdx.x] = place;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        const int i = threadIdx.x;
        if (i < half && (values[i + half] > values[i] ||
                         (values[i + half] == values[i] && places[i + half] < places[i]))) {
            values[i] = values[i + half];
            places[i] = places[i + half];
        }
    }
    if (threadIdx.x == 0) y[blockIdx.x] = places[0];
}
