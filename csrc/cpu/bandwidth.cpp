/* How fast this machine's memory can be read: the ceiling of decoding, which reads every weight once a token. */
#include <stdint.h>
#include <stdlib.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "clock.h"

using quamba::seconds;

namespace {

/* Adds up n bytes (a multiple of 256): four independent sums, so that loads and not the additions are waited for. */
uint64_t read_all(const uint64_t* p, size_t n) {
    uint64_t a[32] = {};
    for (size_t i = 0; i < n / 8; i += 32) {
        __builtin_prefetch(p + i + 256);
        __builtin_prefetch(p + i + 264);
        __builtin_prefetch(p + i + 272);
        __builtin_prefetch(p + i + 280);
        for (int k = 0; k < 32; k++) a[k] += p[i + k];
    }
    uint64_t total = 0;
    for (uint64_t v : a) total += v;
    return total;
}

}  // namespace

/* The best of `repeats` reads of `bytes` by so many threads, in bytes a second; 0 where there is not so much memory.  Threads start
 * together and each is timed by the slowest; `bytes` should be several times the largest cache. */
extern "C" double quamba_read_bandwidth(int threads, size_t bytes, int repeats) {
    const size_t each = bytes / size_t(threads) / 4096 * 4096;
    const std::unique_ptr<char, decltype(&free)> memory(static_cast<char*>(aligned_alloc(4096, each * size_t(threads))), &free);
    if (!memory || !each) return 0;
    for (size_t i = 0; i < each * size_t(threads); i += 64) memory.get()[i] = char(i >> 12);
    double best = 0;
    for (int r = 0; r < repeats; r++) {
        std::atomic<int> ready{0};
        std::atomic<uint64_t> sink{0};
        std::vector<double> began(size_t(threads), 0.0), ended(size_t(threads), 0.0);
        std::vector<std::thread> team;
        for (int t = 0; t < threads; t++)
            team.emplace_back([&, t] {
                ready++;
                while (ready < threads) std::this_thread::yield();
                began[size_t(t)] = seconds();
                sink += read_all(reinterpret_cast<const uint64_t*>(memory.get() + size_t(t) * each), each);
                ended[size_t(t)] = seconds();
            });
        for (auto& thread : team) thread.join();
        double first = began[0], last = ended[0];
        for (int t = 1; t < threads; t++) {
            if (began[size_t(t)] < first) first = began[size_t(t)];
            if (ended[size_t(t)] > last) last = ended[size_t(t)];
        }
        const double speed = double(each) * threads / (last - first);
        if (speed > best) best = speed;
    }
    return best;
}
