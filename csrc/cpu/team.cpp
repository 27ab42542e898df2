#include "team.h"

#include <sched.h>

#include "clock.h"

namespace quamba {

namespace {

constexpr int SPINS = 300;      // pauses before yielding: some 10 microseconds, longer than most waits
constexpr int PATIENCE = 2000;  // yields without work before a helper goes to sleep: about a millisecond, more than sampling takes

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

}  // namespace

Team::Team(int threads) {
    for (int i = 1; i < threads; i++) helpers_.emplace_back(&Team::help, this, i);
}

Team::~Team() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
}

void Team::run(const Stage* stages, int count, char* scratch, size_t stride, double* times) {
    if (count == 0) return;
    first_ = ticket_.load(std::memory_order_relaxed) >> CHUNK_BITS;
    stages_ = stages, count_ = count, scratch_ = scratch, stride_ = stride, times_ = times;
    mark_ = times ? seconds() : 0;
    running_.store(true, std::memory_order_seq_cst);
    ticket_.store(first_ << CHUNK_BITS | uint64_t(stages[0].chunks), std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst)) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    const uint64_t end = first_ + uint64_t(count);
    for (int idle = 0; ticket_.load(std::memory_order_acquire) >> CHUNK_BITS != end;) {
        if (take(0)) {
            idle = 0;
        } else if (++idle < SPINS) {
            pause();
        } else {
            sched_yield();
        }
    }
    running_.store(false, std::memory_order_relaxed);
}

bool Team::take(int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_relaxed);
    do {
        if (!(ticket & CHUNK_MASK)) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_relaxed));

    char* const scratch = scratch_ + size_t(thread) * stride_;
    const Stage* stage = stages_ + ((ticket >> CHUNK_BITS) - first_);
    const Stage* const end = stages_ + count_;
    stage->run(*stage->call, {stage->chunks - int(ticket & CHUNK_MASK), scratch});
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < stage->chunks) return true;

    // This thread has finished the stage.  Stages of a single chunk it does itself: what they read is in its cache.
    finish(*stage);
    for (++stage; stage != end && stage->chunks == 1; ++stage) {
        stage->run(*stage->call, {0, scratch});
        finish(*stage);
    }
    done_.store(0, std::memory_order_relaxed);
    const uint64_t next = first_ + uint64_t(stage - stages_);
    ticket_.store(next << CHUNK_BITS | uint64_t(stage == end ? 0 : stage->chunks), std::memory_order_release);
    return true;
}

void Team::finish(const Stage& stage) {
    if (!times_ || !stage.last) return;
    const double t = seconds();
    *times_++ = t - mark_;
    mark_ = t;
}

void Team::help(int thread) {
    for (int idle = 0;;) {
        if (take(thread)) {
            idle = 0;
        } else if (++idle < SPINS) {
            pause();
        } else if (idle < SPINS + PATIENCE || running_.load(std::memory_order_relaxed)) {
            sched_yield();
        } else {
            std::unique_lock<std::mutex> lock(mutex_);
            sleeping_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [this] { return stop_ || running_.load(std::memory_order_seq_cst); });
            sleeping_.fetch_sub(1, std::memory_order_seq_cst);
            idle = 0;
        }
        if (stop_) return;
    }
}

}  // namespace quamba
