/* Threads that run the stages of a plan.
 *
 * There is no barrier.  One 64-bit ticket holds the number of the current stage and how many of its chunks are not yet taken; a
 * thread takes a chunk by lowering it, and whoever finishes the last chunk puts up the ticket of the next stage, having done by
 * itself those that are a single chunk.  A thread that is not running holds up nobody unless it has taken a chunk: with another
 * program on one core, the other core goes on alone. */
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "call.h"

namespace quamba {

struct Stage {
    void (*run)(const Call&, const Work&);
    const Call* call;
    int chunks;
    bool last;  // of its call
};

class Team {
  public:
    explicit Team(int threads);
    ~Team();

    /* Runs all stages; returns when they are done.  `scratch` has `stride` bytes for every thread.  Where `times` is not null, it
     * receives the seconds that each call took. */
    void run(const Stage* stages, int count, char* scratch, size_t stride, double* times);

  private:
    void help(int thread);
    bool take(int thread);  // does a chunk if there is one
    void finish(const Stage& stage);

    static constexpr int CHUNK_BITS = 24;
    static constexpr uint64_t CHUNK_MASK = (1u << CHUNK_BITS) - 1;

    alignas(64) std::atomic<uint64_t> ticket_{0};  // stage << CHUNK_BITS | chunks not yet taken
    alignas(64) std::atomic<int> done_{0};         // chunks of the stage that are finished
    alignas(64) std::atomic<bool> running_{false};
    std::atomic<int> sleeping_{0};

    // Written between runs only; read by threads that have taken a chunk, so never while they change.
    const Stage* stages_ = nullptr;
    int count_ = 0;
    uint64_t first_ = 0;
    char* scratch_ = nullptr;
    size_t stride_ = 0;
    double* times_ = nullptr;
    double mark_ = 0;

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<bool> stop_{false};
    std::vector<std::thread> helpers_;
};

}  // namespace quamba
