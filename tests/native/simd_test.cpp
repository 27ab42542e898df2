/* Every function of one instruction set (csrc/cpu/simd) against scalar formulas of what it means.
 *
 * Compiled once for each set, like the kernels: -DSIMD=avx2 and so on.  Without arguments: checks all, names what is
 * wrong, exits with 1 if anything is.  `simd_test halves`: reads n and n floats from standard input, and writes the
 * values of all 65536 halves and these floats as halves, for numpy to compare. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "simd.h"

using namespace quamba;
namespace S = quamba::SIMD;
using S::bytes64, S::f32x16, S::i32x16, S::set;

namespace {

int wrong = 0;

void check(bool right, const char* what, int lane, double found, double expected) {
    if (right) return;
    if (wrong++ < 40) printf("%s: %s lane %d is %.9g, expected %.9g\n", QUAMBA_TEXT(SIMD), what, lane, found, expected);
}

/* The same bits, but for NaNs and for the sign of zero. */
bool same(float a, float b) {
    return a == b || (a != a && b != b);
}

struct Random {
    uint64_t state = 88172645463325252u;

    uint32_t bits() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return uint32_t(state >> 32);
    }
    int below(int n) { return int(bits() % uint32_t(n)); }
    float real(float size) { return size * (float(bits()) / 2147483648.0f - 1.0f); }
} rng;

template <class T, class V>
struct Lanes {
    static_assert(sizeof(V) == 64, "lanes lie one after another");
    T v[64 / sizeof(T)];

    Lanes() = default;
    Lanes(V from) { memcpy(v, &from, 64); }
    operator V() const {
        V to;
        memcpy(&to, v, 64);
        return to;
    }
    T operator[](int i) const { return v[i]; }
};
using Floats = Lanes<float, f32x16>;
using Ints = Lanes<int32_t, i32x16>;
using Bytes = Lanes<uint8_t, bytes64>;

const float EDGES[] = {0,      -0.0f,   1,   -1,   0.5f,  -0.5f,  1.5f,   2.5f,   -2.5f, 126.5f, -126.5f, 127,
                       -127,   1e-8f,   3,   6e-8f, -3e-8f, 1e-40f, 1e-30f, -1e30f, 65504, 65519,  -7.25f,  123456.5f};

Floats some(int round, float size = 100) {
    Floats r;
    for (float& x : r.v) x = round % 4 ? rng.real(size) : EDGES[rng.below(int(sizeof EDGES / sizeof *EDGES))];
    return r;
}

template <class F>
void lanes(const char* what, const Floats& found, F expected) {
    for (int i = 0; i < 16; i++) check(same(found[i], expected(i)), what, i, found[i], expected(i));
}

template <class F>
void whole(const char* what, const Ints& found, F expected) {
    for (int i = 0; i < 16; i++) check(found[i] == expected(i), what, i, found[i], expected(i));
}

float nearest(float x) {
    return nearbyintf(x);
}

void arithmetic() {
    for (int round = 0; round < 400; round++) {
        const Floats a = some(round), b = some(round / 3), c = some(round / 5);
        lanes("a + b", f32x16(a) + f32x16(b), [&](int i) { return a[i] + b[i]; });
        lanes("a - b", f32x16(a) - f32x16(b), [&](int i) { return a[i] - b[i]; });
        lanes("a * b", f32x16(a) * f32x16(b), [&](int i) { return a[i] * b[i]; });
        lanes("a / b", f32x16(a) / f32x16(b), [&](int i) { return a[i] / b[i]; });
        lanes("min", S::min(a, b), [&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
        lanes("max", S::max(a, b), [&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
        lanes("abs", S::abs(a), [&](int i) { return fabsf(a[i]); });
        const Floats sum = S::fma(a, b, c);
        for (int i = 0; i < 16; i++) {
            const volatile float product = a[i] * b[i];  // rounded: not every machine of `plain` has a fused one
            const float fused = fmaf(a[i], b[i], c[i]), two = product + c[i];
            check(same(sum[i], fused) || same(sum[i], two), "fma", i, sum[i], fused);
        }
        const Floats small = some(round, 2e6f);
        if (round % 4) lanes("round", S::round(small), [&](int i) { return nearest(small[i]); });
        lanes("to_codes", S::to_codes(a, set(3.25f)), [&](int i) { return fminf(fmaxf(a[i] * 3.25f, -127), 127); });
        lanes("partner 1", S::partner<1>(a), [&](int i) { return a[i ^ 1]; });
        lanes("partner 2", S::partner<2>(a), [&](int i) { return a[i ^ 2]; });
        lanes("partner 4", S::partner<4>(a), [&](int i) { return a[i ^ 4]; });
        lanes("partner 8", S::partner<8>(a), [&](int i) { return a[i ^ 8]; });
        const Floats d = some(1);
        double exact = 0, size = 0;
        for (float x : d.v) exact += x, size += fabs(x);
        check(fabs(S::sum(f32x16(d)) - exact) <= 3e-7 * size, "sum", 0, S::sum(f32x16(d)), exact);
        Floats power, base = some(1, 1);
        for (float& n : power.v) n = float(rng.below(254) - 126);
        for (float& x : base.v) x = 1.5f + x / 2;
        lanes("scale2", S::scale2(base, power), [&](int i) { return ldexpf(base[i], int(power[i])); });
    }
    lanes("set", set(-2.5f), [](int) { return -2.5f; });
    for (float tie = -4.5f; tie < 5; tie++)
        lanes("round of ties", S::round(set(tie)), [&](int) { return nearest(tie); });
    lanes("min of NaN and 3", S::min(set(NAN), set(3)), [](int) { return 3.0f; });
    lanes("max of NaN and 3", S::max(set(NAN), set(3)), [](int) { return 3.0f; });
}

/* f32 arguments between two ends; errors are relative to the exact value. */
template <class F, class G>
void curve(const char* what, F found, G exact, float from, float to, double relative) {
    for (int k = 0; k < 100000; k += 16) {
        Floats x;
        for (int i = 0; i < 16; i++) x.v[i] = from + (to - from) * (float(k + i) / 100000);
        const Floats y = found(f32x16(x));
        for (int i = 0; i < 16; i++) {
            const double e = exact(double(x[i]));
            check(fabs(y[i] - e) <= relative * fabs(e), what, i, y[i], e);
        }
    }
}

void functions() {
    const double ulp = ldexp(1, -23);
    const auto silu = [](double x) { return x / (1 + exp(-x)); };
    const auto softplus = [](double x) { return log1p(exp(x)); };
    curve("exp", [](f32x16 x) { return S::exp(x); }, [](double x) { return exp(x); }, -87.3f, 88, 2 * ulp);
    curve("silu", [](f32x16 x) { return S::silu(x); }, silu, -80, 90, 4 * ulp);
    curve("softplus", [](f32x16 x) { return S::softplus(x); }, softplus, -80, 90, 6 * ulp);
    const Floats last = S::exp(set(88.02f)), first = S::exp(set(-87.33f));
    for (float x : {89.0f, 1e6f, INFINITY}) lanes("exp beyond", S::exp(set(x)), [&](int) { return last[0]; });
    for (float x : {-88.0f, -1e6f, -INFINITY}) lanes("exp below", S::exp(set(x)), [&](int) { return first[0]; });
    check(last[0] > 1e38f && isfinite(last[0]), "exp at its end", 0, last[0], 1.7e38);
    check(first[0] > 0 && first[0] < 2e-38f, "exp at its beginning", 0, first[0], 1.2e-38);
    check(fabsf(Floats(S::silu(set(-200)))[0]) < 1e-30f, "silu(-200)", 0, Floats(S::silu(set(-200)))[0], 0);
    lanes("softplus far above", S::softplus(set(1e6f)), [](int) { return 1e6f; });
}

void integers() {
    const int8_t extremes[] = {-127, 127, -126, 126, 1, -1, 0};
    for (int round = 0; round < 400; round++) {
        Ints a, b;
        for (int32_t& x : a.v) x = int32_t(rng.bits());
        for (int32_t& x : b.v) x = rng.below(2000001) - 1000000;
        whole("i32 a + b", i32x16(a) + i32x16(b), [&](int i) { return int32_t(uint32_t(a[i]) + uint32_t(b[i])); });
        whole("i32 a - b", i32x16(a) - i32x16(b), [&](int i) { return int32_t(uint32_t(a[i]) - uint32_t(b[i])); });
        lanes("to_float", S::to_float(a), [&](int i) { return float(a[i]); });
        int32_t total = 0;
        for (int32_t x : b.v) total += x;
        check(S::sum(i32x16(b)) == total, "i32 sum", 0, S::sum(i32x16(b)), total);
        Bytes w, x, codes;
        for (int k = 0; k < 64; k++) {
            const bool edge = round % 2;
            codes.v[k] = uint8_t(edge ? rng.below(2) * 15 : rng.below(16));
            w.v[k] = uint8_t(edge ? extremes[rng.below(round % 4 == 1 ? 2 : 7)] : rng.below(255) - 127);
            x.v[k] = uint8_t(edge ? extremes[rng.below(round % 4 == 1 ? 2 : 7)] : rng.below(255) - 127);
        }
        const auto dot = [&](int i, const Bytes& by, int bias) {
            int32_t all = b[i];
            for (int k = 4 * i; k < 4 * i + 4; k++) all += (int8_t(by[k]) + bias) * int8_t(x[k]);
            return all;
        };
        whole("dot4", S::dot4(b, codes, x), [&](int i) { return dot(i, codes, 0); });
        whole("dot8", S::dot8(b, S::codes8(w), x), [&](int i) { return dot(i, w, S::BIAS8); });
        Bytes any;
        for (uint8_t& byte : any.v) byte = uint8_t(rng.bits());
        const Bytes loaded = S::load64(any.v), four = S::repeat4(any.v + 5);
        const Bytes low = S::low_nibbles(any), high = S::high_nibbles(any);
        for (int k = 0; k < 64; k++) {
            check(loaded[k] == any[k], "load64 byte", k, loaded[k], any[k]);
            check(low[k] == (any[k] & 15), "low_nibbles byte", k, low[k], any[k] & 15);
            check(high[k] == any[k] >> 4, "high_nibbles byte", k, high[k], any[k] >> 4);
            check(four[k] == any[5 + k % 4], "repeat4 byte", k, four[k], any[5 + k % 4]);
        }
        const auto nibble = [&](int i, int n) { return float((any[4 * i + n / 2] >> (n % 2 * 4) & 15) - 8); };
        lanes("nibble 0", S::nibble<0>(any), [&](int i) { return nibble(i, 0); });
        lanes("nibble 1", S::nibble<1>(any), [&](int i) { return nibble(i, 1); });
        lanes("nibble 2", S::nibble<2>(any), [&](int i) { return nibble(i, 2); });
        lanes("nibble 3", S::nibble<3>(any), [&](int i) { return nibble(i, 3); });
        lanes("nibble 4", S::nibble<4>(any), [&](int i) { return nibble(i, 4); });
        lanes("nibble 5", S::nibble<5>(any), [&](int i) { return nibble(i, 5); });
        lanes("nibble 6", S::nibble<6>(any), [&](int i) { return nibble(i, 6); });
        lanes("nibble 7", S::nibble<7>(any), [&](int i) { return nibble(i, 7); });
        const auto byte = [&](int i, int n) { return float(int8_t(any[4 * i + n])); };
        lanes("byte 0", S::byte<0>(any), [&](int i) { return byte(i, 0); });
        lanes("byte 1", S::byte<1>(any), [&](int i) { return byte(i, 1); });
        lanes("byte 2", S::byte<2>(any), [&](int i) { return byte(i, 2); });
        lanes("byte 3", S::byte<3>(any), [&](int i) { return byte(i, 3); });
        S::prefetch(any.v);
    }
    whole("zeros", S::zeros(), [](int) { return 0; });
    whole("set_i32", S::set_i32(-123456789), [](int) { return -123456789; });
}

float value_of(float x) {
    return x;
}
float value_of(half x) {
    return half_to_float(x);
}
float value_of(int8_t x) {
    return x;
}
void make(float& to, float x) {
    to = x;
}
void make(half& to, float x) {
    to = float_to_half(x);
}
void make(int8_t& to, float x) {
    to = int8_t(nearest(x));
}

/* What a T can hold. */
template <class T>
Floats values(int round) {
    Floats r = some(round);
    for (float& x : r.v) x = sizeof(T) == 1 ? fminf(fmaxf(x, -127), 127) : x;
    return r;
}

/* Loads and stores of n elements that end where a page without access begins: touching more ends the program. */
template <class T>
void memory(const char* type, char* end) {
    char what[40];
    for (int n = 0; n <= 16; n++)
        for (int round = 1; round < 8; round++) {
            T* p = reinterpret_cast<T*>(end) - n;
            const Floats a = values<T>(round);
            for (int i = 0; i < n; i++) make(p[i], a[i]);
            snprintf(what, sizeof what, "load %s, %d", type, n);
            lanes(what, S::load(p, n), [&](int i) { return i < n ? value_of(p[i]) : 0.0f; });
            if (n == 16) lanes("load of sixteen", S::load(p), [&](int i) { return value_of(p[i]); });
            snprintf(what, sizeof what, "store %s, %d", type, n);
            T before[8], rounded;
            for (int i = 0; i < 8; i++) make(before[i], float(i));
            memcpy(static_cast<void*>(p - 8), before, sizeof before);
            for (int whole = 0; whole <= (n == 16); whole++) {
                const Floats b = values<T>(round);
                if (whole) S::store(p, f32x16(b));
                else S::store(p, f32x16(b), n);
                for (int i = 0; i < n; i++) {
                    make(rounded, b[i]);
                    check(same(value_of(p[i]), value_of(rounded)), what, i, value_of(p[i]), value_of(rounded));
                }
                check(!memcmp(p - 8, before, sizeof before), what, -1, 1, 0);
            }
            T* q = p - 16;  // and what lies behind n elements stays
            for (int i = 0; i < 16; i++) make(q[i], 7);
            S::store(q, f32x16(a), n);
            for (int i = n; i < 16; i++) check(value_of(q[i]) == 7, what, i, value_of(q[i]), 7);
        }
}

void halves() {
    for (int base = 0; base < 65536; base += 16) {
        half h[16];
        for (int i = 0; i < 16; i++) h[i].bits = uint16_t(base + i);
        lanes("load of every half", S::load(h), [&](int i) { return half_to_float(h[i]); });
    }
    const auto narrow = [](const uint32_t* bits) {
        Floats x;
        memcpy(x.v, bits, 64);
        half h[16];
        S::store(h, f32x16(x));
        for (int i = 0; i < 16; i++) {
            const float found = half_to_float(h[i]), expected = half_to_float(float_to_half(x[i]));
            check(same(found, expected) && signbit(found) == signbit(expected), "store half", i, found, expected);
        }
    };
    uint32_t bits[16];
    for (uint64_t all = 0; all < 1ull << 32; all += 16 * 9973) {
        for (int i = 0; i < 16; i++) bits[i] = uint32_t(all + uint64_t(i) * 9973);
        narrow(bits);
    }
    for (uint32_t h = 0; h < 65536; h++) {  // a half, and the ties on both sides of it
        const float value = half_to_float({uint16_t(h)});
        uint32_t center;
        memcpy(&center, &value, 4);
        for (int i = 0; i < 16; i++) bits[i] = center + (i < 8 ? 0x1000u : 0u - 0x1000u) + uint32_t(i % 8 - 4);
        narrow(bits);
    }
}

int serve_halves() {
    uint32_t n = 0;
    if (fread(&n, 4, 1, stdin) != 1) return 1;
    std::vector<float> values(n);
    if (fread(values.data(), 4, n, stdin) != n) return 1;
    for (uint32_t h = 0; h < 65536; h++) {
        const float value = half_to_float({uint16_t(h)});
        fwrite(&value, 4, 1, stdout);
    }
    for (float value : values) {
        const half h = float_to_half(value);
        fwrite(&h, 2, 1, stdout);
    }
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    if (count == 2 && !strcmp(arguments[1], "halves")) return serve_halves();
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    void* mapped = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* pages = static_cast<char*>(mapped);
    if (mapped == MAP_FAILED || mprotect(pages + page, page, PROT_NONE)) return perror("mmap"), 2;
    arithmetic();
    functions();
    integers();
    memory<float>("f32", pages + page);
    memory<half>("f16", pages + page);
    memory<int8_t>("i8", pages + page);
    halves();
    printf("%s: %d wrong\n", QUAMBA_TEXT(SIMD), wrong);
    return wrong ? 1 : 0;
}
