/* Blocks and threads: what runs a kernel's code.  serve.cpp and driver.cpp are told what to run. */
#include "emulator.h"

#include <string>
#include <vector>

namespace quamba {
namespace emu {

Thread* self;
dim3 block_index, block_size, grid_size;
char* shared;
bool late;

namespace {

Entry* entries;
Thread* threads;
unsigned count, arrived;
uint64_t generation, progress;
Fiber scheduler;
const Entry* running;
const Argument* arguments;

void thread_entry() {
    entered(self->fiber);
    running->call(running->function, arguments);
    if (!self->copies.empty()) fail("a thread ends before its asynchronous copies have");
    self->done = true;
    progressed();
    switch_fiber(self->fiber, scheduler, true);
}

void run_block(bool reversed, char* memory) {
    static std::vector<Warp> warps;
    warps.assign((count + WARP - 1) / WARP, Warp());
    arrived = 0;
    for (unsigned i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        t.lane = i % WARP;
        t.collectives = 0;
        t.warp = &warps[i / WARP];
        t.done = false;
        t.copies.clear();
        t.groups = 0;
        t.number = i;
        prepare(t.fiber, memory + STACK * i, STACK, thread_entry);
    }
    for (unsigned left = count; left;) {
        const uint64_t before = progress;
        for (unsigned i = 0; i < count; i++) {
            Thread& t = threads[reversed ? count - 1 - i : i];
            if (t.done) continue;
            self = &t;
            switch_fiber(scheduler, t.fiber);
            left -= t.done;
        }
        if (left && progress == before) fail("threads wait for others that have left or wait elsewhere");
    }
}

/* Stacks for a block's threads, once. */
char* prepare_stacks() {
    threads = new Thread[MOST_THREADS];
    char* memory = stacks(STACK * MOST_THREADS);
    if (!memory) fail("no memory for stacks");
#if defined(__SANITIZE_ADDRESS__)
    // The scheduler's stack is the process's; the sanitizer wants its bounds when it goes back there.
    pthread_attr_t attributes;
    void* bottom;
    size_t size;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &size);
    scheduler.stack = bottom;
    scheduler.size = size;
#endif
    return memory;
}

}  // namespace

Entry::Entry(const char* n, void* f, int a, void (*c)(void*, const Argument*))
    : name(n), function(f), arity(a), call(c), next(entries) {
    entries = this;
}

const Entry* find(const char* name) {
    const Entry* entry = entries;
    while (entry && strcmp(name, entry->name)) entry = entry->next;
    return entry;
}

void launch(const Entry& kernel, dim3 grid, dim3 block, size_t shared_bytes, bool reversed, const Argument* given) {
    static char* const memory = prepare_stacks();
    grid_size = grid;
    block_size = block;
    running = &kernel;
    arguments = given;
    late = reversed;
    count = block.x * block.y * block.z;
    if (count == 0 || count > MOST_THREADS) fail("a block has 1 to 1024 threads");
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t b = reversed ? blocks - 1 - i : i;
        block_index = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        if (posix_memalign(reinterpret_cast<void**>(&shared), 16, shared_bytes ? shared_bytes : 16)) fail("no memory");
        memset(shared, 0xff, shared_bytes);  // NaN: shared memory is not zero at the start
        races_block(shared, shared_bytes);
        run_block(reversed, memory);
        free(shared);
    }
    self = nullptr;
}

void fail(const char* what) {
    if (self && running)
        fprintf(stderr, "%s, block (%u %u %u), thread (%u %u %u): ", running->name, block_index.x, block_index.y,
                block_index.z, self->index.x, self->index.y, self->index.z);
    fprintf(stderr, "%s\n", what);
    _exit(1);
}

void yield() {
    switch_fiber(self->fiber, scheduler);
}

void progressed() {
    progress++;
}

namespace {

void make(Copy& copy) {
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
}

}  // namespace

void copy_async(void* to, const void* from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
        fail("an asynchronous copy between addresses that are no multiples of 16");
    Copy copy = {to, from, self->groups};
    races_copy(to, from, true);
    if (!late) make(copy);
    self->copies.push_back(copy);
}

void copies_end() {
    self->groups++;
}

void copies_wait(unsigned left) {
    std::vector<Copy> kept;
    for (Copy& copy : self->copies) {
        if (copy.group + left >= self->groups) {
            kept.push_back(copy);
            continue;
        }
        if (late) make(copy);
        races_copy(copy.to, copy.from, false);
    }
    self->copies.swap(kept);
}

void block_barrier() {
    const uint64_t before = generation;
    if (++arrived == count) {
        arrived = 0;
        generation++;
        races_barrier();
        progressed();
    } else {
        while (generation == before) yield();
    }
}

}  // namespace emu
}  // namespace quamba

#if defined(__x86_64__)
asm(R"(
.text
.globl quamba_switch
.type quamba_switch, @function
quamba_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size quamba_switch, . - quamba_switch
)");
#endif
