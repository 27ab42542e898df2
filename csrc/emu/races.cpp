/* Finds accesses of two threads that nothing orders, one of them a write, in shared and in global memory.
 *
 * The compiler is asked for ThreadSanitizer's calls at every read and write (-fsanitize=thread) and this file is what
 * they call: of each byte it keeps who wrote it last and who has read it since.  Two accesses are in order if they are
 * one thread's, or of one block with a __syncthreads between them, or of one warp with a __syncwarp; shuffles and mma
 * order nothing.  Blocks are never in order.  So it does not matter in which order the emulator runs threads: one run
 * shows every race that this input has.  An asynchronous copy holds its target from asking to waiting. */
#include "races.h"

#include "emulator.h"

namespace quamba {
namespace emu {
namespace {

enum Readers : uint8_t { NOBODY, ONE, LANES_OF_ONE_WARP, SEVERAL };

/* `moment` counts blocks and barriers, from 1; `warp_moment` a thread's __syncwarp calls. */
struct Access {
    uint32_t moment;
    uint16_t thread, warp_moment;
};
struct Byte {
    Access wrote, read;
    Readers readers;
    bool atomic, read_before, coming;  // the last write was; an earlier block has read it; a copy is on its way
};
struct Region {
    const char* start;
    size_t bytes;
    std::vector<Byte> state;
};

std::vector<Region> regions;  // the first is the block's shared memory
uint32_t moment, block_start;
uint16_t warp_moments[MOST_THREADS];

[[noreturn]] void race(const Region& region, const Byte& byte, size_t at, const Access& other, const char* did) {
    char text[160];
    const bool elsewhere = other.moment < block_start;
    snprintf(text, sizeof text, "race at byte %zu of %s: it %s what %sthread %u %s%s", at,
             &region == &regions[0] ? "shared memory" : "a buffer", did, elsewhere ? "another block's " : "",
             unsigned(other.thread), &other == &byte.wrote ? "writes" : "reads",
             byte.coming ? " (an asynchronous copy is on its way)" : "");
    fail(text);
}

bool in_order(const Access& before, const Access& now) {
    if (before.moment == 0) return true;
    if (before.moment < block_start) return false;
    return before.moment < now.moment || before.thread == now.thread ||
           (before.thread / WARP == now.thread / WARP && before.warp_moment < now.warp_moment);
}

void note_read(const Region& region, Byte& byte, size_t at, const Access& now) {
    if (byte.coming || !in_order(byte.wrote, now)) race(region, byte, at, byte.wrote, "reads");
    Access& last = byte.read;
    if (last.moment != now.moment) {
        byte.read_before |= last.moment != 0 && last.moment < block_start;
        byte.readers = ONE;
    } else if (last.thread / WARP != now.thread / WARP) {
        byte.readers = SEVERAL;
    } else if (byte.readers != SEVERAL && last.warp_moment == now.warp_moment) {
        if (last.thread != now.thread) byte.readers = LANES_OF_ONE_WARP;
    } else if (byte.readers != SEVERAL && last.warp_moment < now.warp_moment) {
        byte.readers = ONE;
    }
    last = now;
}

void note_write(const Region& region, Byte& byte, size_t at, const Access& now, bool atomic) {
    if (byte.coming || (!(atomic && byte.atomic) && !in_order(byte.wrote, now)))
        race(region, byte, at, byte.wrote, "writes");
    const bool shared_reads = byte.readers == SEVERAL && byte.read.moment == now.moment;
    const bool lanes_read = byte.readers == LANES_OF_ONE_WARP && byte.read.moment == now.moment &&
                            (byte.read.thread / WARP != now.thread / WARP || byte.read.warp_moment >= now.warp_moment);
    if (byte.read_before || shared_reads || lanes_read || !in_order(byte.read, now))
        race(region, byte, at, byte.read, "writes");
    // An atomic access behind the thread's own plain one does not hide that from other threads' atomics.
    const bool plain_before = byte.wrote.moment == now.moment && byte.wrote.thread == now.thread &&
                              byte.wrote.warp_moment == now.warp_moment && !byte.atomic;
    byte.wrote = now;
    byte.atomic = atomic && !plain_before;
}

Access here() {
    return {moment, uint16_t(self->number), warp_moments[self->number]};
}

/* Calls note(region, byte, offset) for each byte that is watched. */
template <class F>
void each_byte(const void* address, size_t bytes, F note) {
    if (!self) return;
    const char* at = static_cast<const char*>(address);
    for (Region& region : regions) {
        const size_t offset = size_t(at - region.start);
        if (offset >= region.bytes) continue;
        for (size_t i = offset; i < offset + bytes && i < region.bytes; i++) note(region, region.state[i], i);
        return;
    }
}

void read(const void* address, size_t bytes) {
    each_byte(address, bytes, [](Region& r, Byte& b, size_t i) { note_read(r, b, i, here()); });
}
void write(const void* address, size_t bytes) {
    each_byte(address, bytes, [](Region& r, Byte& b, size_t i) { note_write(r, b, i, here(), false); });
}

}  // namespace

void races_forget() {
    regions.assign(1, Region());
    moment = 0;
}

void races_buffer(const void* start, size_t bytes) {
    regions.push_back({static_cast<const char*>(start), bytes, std::vector<Byte>(bytes)});
}

void races_block(const void* shared, size_t bytes) {
    regions[0] = {static_cast<const char*>(shared), bytes, std::vector<Byte>(bytes)};
    block_start = ++moment;
    memset(warp_moments, 0, sizeof warp_moments);
}

void races_barrier() {
    moment++;
}

void races_warp() {
    warp_moments[self->number]++;
}

void races_atomic(const void* at, size_t bytes) {
    each_byte(at, bytes, [](Region& r, Byte& b, size_t i) { note_write(r, b, i, here(), true); });
}

void races_copy(const void* to, const void* from, bool on) {
    each_byte(to, 16, [on](Region& r, Byte& b, size_t i) {
        if (!on) b.coming = false;
        note_write(r, b, i, here(), false);
        b.coming = on;
    });
    if (from) read(from, 16);
}

}  // namespace emu
}  // namespace quamba

using quamba::emu::read;
using quamba::emu::write;

/* What the compiler calls. */
extern "C" {
#define QUAMBA_WATCH(size)                                                       \
    void __tsan_read##size(void* at) { read(at, size); }                         \
    void __tsan_write##size(void* at) { write(at, size); }
#define QUAMBA_WATCH_UNALIGNED(size)                                             \
    void __tsan_unaligned_read##size(void* at) { read(at, size); }               \
    void __tsan_unaligned_write##size(void* at) { write(at, size); }
QUAMBA_WATCH(1)
QUAMBA_WATCH(2)
QUAMBA_WATCH(4)
QUAMBA_WATCH(8)
QUAMBA_WATCH(16)
QUAMBA_WATCH_UNALIGNED(2)
QUAMBA_WATCH_UNALIGNED(4)
QUAMBA_WATCH_UNALIGNED(8)
QUAMBA_WATCH_UNALIGNED(16)
void __tsan_read_range(void* at, size_t bytes) { read(at, bytes); }
void __tsan_write_range(void* at, size_t bytes) { write(at, bytes); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
