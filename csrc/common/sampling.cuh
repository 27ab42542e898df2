/* What the sampling kernels (csrc/cuda/sample.cu, which says how) are made of; each function is one call for a whole
 * block. */
#pragma once
#include "device.cuh"

namespace quamba {
namespace sample {

constexpr int PIECE = 2048;  // logits of a block: 125 blocks at V = 256000, 25 at 50280
constexpr int BINS = 4096, BIN = 64;  // bins, and how many make a difference of 1: all that lies within 64 of the peak
constexpr int LOOK = 1024;  // candidates that are sorted: one for each thread of sample_draw
constexpr int HOST = -2, BROKEN = -1;  // instead of a token: the host must choose; logits that are no numbers
enum { RANDOM, TEMPERATURE, TOP_P, MIN_P, TOP_K, EDITS, SETTINGS = 8, EDIT = 4 };

/* The rule draws in the order of ids where nothing is sorted. */
__device__ inline bool unsorted(const double* how) {
    return how[TOP_K] == 0.0 && how[TOP_P] == 1.0;
}

/* The largest of a value for each thread, in every thread, and the first place where it stands; none is NaN. */
__device__ inline float peak_of(float value, int place, float* values, int* places, int* first) {
    const int i = threadIdx.x;
    values[i] = value;
    places[i] = place;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (i < half) {
            const float a = values[i], b = values[i + half];
            if (b > a || (b == a && places[i + half] < places[i])) {
                values[i] = b;
                places[i] = places[i + half];
            }
        }
    }
    __syncthreads();
    *first = places[0];
    const float peak = values[0];
    __syncthreads();
    return peak;
}

__device__ inline int bin_of(float value, float peak) {
    const float below = (peak - value) * float(BIN);
    return below < float(BINS) ? int(below) : BINS;
}

/* v[i] = v[0] + ... + v[i], a value for each thread; its own in every thread. */
template <class T>
__device__ inline T running_sum(T mine, T* v) {
    const int i = threadIdx.x;
    v[i] = mine;
    __syncthreads();
    for (int apart = 1; apart < int(blockDim.x); apart *= 2) {
        const T before = i >= apart ? v[i - apart] : T(0);
        __syncthreads();
        v[i] = before + v[i];
        __syncthreads();
    }
    return v[i];
}

/* Larger numbers for larger values. */
__device__ inline uint32_t ordered(float value) {
    const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 and 0 are equal
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float value_of(uint32_t order) {
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

__device__ inline double chance_of(float value, float peak, double temperature) {
    return exp((double(value) - double(peak)) / temperature);
}

/* How many threads say yes, in every thread; `room` is a shared int that nobody uses. */
__device__ inline int count_of(bool yes, int* room) {
    __syncthreads();
    if (threadIdx.x == 0) *room = 0;
    __syncthreads();
    if (yes) atomicAdd(room, 1);
    __syncthreads();
    return *room;
}

/* A token by its id's place in the running sum of all chances; min_p is applied to each. */
__device__ inline int walk(const double* how, const float* values, const double* shares, float peak, int V,
                           double* sums, int* room) {
    const int i = threadIdx.x, pieces = (V + PIECE - 1) / PIECE;
    running_sum(i < pieces ? shares[i] : 0.0, sums);
    const double target = how[RANDOM] * sums[blockDim.x - 1];
    const int full = count_of(i < pieces && sums[i] <= target, room);
    // Behind the last piece only by rounding: then the last that has any.
    const int some = count_of(i < pieces && sums[i] < sums[blockDim.x - 1], room);
    const int piece = full < pieces ? full : some;
    const double before = piece ? sums[piece - 1] : 0.0;
    __syncthreads();
    double chance[2];
    for (int j = 0; j < 2; j++) {  // neighbours belong to a thread
        const int v = piece * PIECE + 2 * i + j;
        chance[j] = v < V ? chance_of(values[v], peak, how[TEMPERATURE]) : 0.0;
        if (chance[j] < how[MIN_P]) chance[j] = 0.0;
    }
    const double both = before + running_sum(chance[0] + chance[1], sums), one = both - chance[1];
    const int passed = count_of(one <= target, room) + count_of(both <= target, room);
    // The last token with a chance, should rounding lead behind it.
    __syncthreads();
    if (i == 0) *room = 0;
    __syncthreads();
    if (chance[0] > 0.0 || chance[1] > 0.0) atomicMax(room, 2 * i + (chance[1] > 0.0));
    __syncthreads();
    return piece * PIECE + (passed < *room ? passed : *room);
}

/* keys (LOOK), the largest first. */
__device__ inline void sort(unsigned long long* keys) {
    const int i = threadIdx.x;
    for (int size = 2; size <= LOOK; size *= 2)
        for (int apart = size / 2; apart; apart /= 2) {
            __syncthreads();
            const int other = i ^ apart;
            if (other > i) {
                const unsigned long long a = keys[i], b = keys[other];
                if ((a < b) == ((i & size) == 0)) keys[i] = b, keys[other] = a;
            }
        }
    __syncthreads();
}

/* A token among the likeliest, after top_k, top_p and min_p in this order; HOST where these are more than LOOK. */
__device__ inline int cut(const double* how, const float* values, const double* shares, const int* bins, float peak,
                          int V, double* sums, int* room) {
    const int i = threadIdx.x, pieces = (V + PIECE - 1) / PIECE, each = BINS / LOOK;
    unsigned long long* keys = reinterpret_cast<unsigned long long*>(sums + LOOK);
    // As many bins as LOOK candidates fill.
    int* counts = reinterpret_cast<int*>(keys);
    int mine = 0, fitting = 0;
    for (int j = 0; j < each; j++) mine += bins[each * i + j];
    int before = running_sum(mine, counts) - mine;
    for (int j = 0; j < each; j++) {
        before += bins[each * i + j];
        fitting += before <= LOOK;
    }
    const int threads = count_of(fitting == each, room);
    __syncthreads();
    if (i == threads) *room = each * threads + fitting;
    if (threads == LOOK && i == 0) *room = BINS;
    __syncthreads();
    const int last = *room;  // bins below it
    // Collected in any order, then sorted.
    keys[i] = 0;
    __syncthreads();
    if (i == 0) *room = 0;
    __syncthreads();
    for (int v = i; v < V; v += blockDim.x)
        if (bin_of(values[v], peak) < last)
            keys[atomicAdd(room, 1)] = static_cast<unsigned long long>(ordered(values[v])) << 32 | (0xffffffffu - v);
    __syncthreads();
    const int found = *room;
    if (found == 0) return HOST;  // too many are as likely as the likeliest
    sort(keys);
    const int k = how[TOP_K] > 0.0 && how[TOP_K] < double(V) ? int(how[TOP_K]) : 0;
    if (how[TOP_K] > 0.0 && (k == 0 ? found < V : found < k)) return HOST;
    const int limit = k ? k : found;
    const double chance = i < limit ? chance_of(value_of(uint32_t(keys[i] >> 32)), peak, how[TEMPERATURE]) : 0.0;
    double all = 0.0;
    if (how[TOP_K] == 0.0) {
        running_sum(i < pieces ? shares[i] : 0.0, sums);
        all = sums[blockDim.x - 1];
        __syncthreads();
    }
    const double reach = running_sum(chance, sums);
    const double share = how[TOP_P] * (how[TOP_K] == 0.0 ? all : sums[limit - 1]);
    if (how[TOP_K] == 0.0 && sums[limit - 1] < share) return HOST;
    int keep = count_of(i < limit && reach < share, room) + 1;
    if (how[TOP_P] == 1.0 || keep > limit) keep = limit;
    const int stay = count_of(i < keep && chance >= how[MIN_P] && chance > 0.0, room);
    const double target = how[RANDOM] * sums[stay - 1];
    const int place = count_of(i < stay && reach <= target, room);
    return int(0xffffffffu - uint32_t(keys[place < stay ? place : stay - 1]));
}

}  // namespace sample
}  // namespace quamba
