/* A stack of its own for every thread of a block, and the switch between them.
 *
 * On x86-64 the switch saves the registers that a call preserves and exchanges stack pointers, some 20 ns; elsewhere
 * ucontext does it.  AddressSanitizer is told of each switch, otherwise it takes another stack for a wild pointer. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define QUAMBA_LEAVE(fake, to) __sanitizer_start_switch_fiber(fake, (to).stack, (to).size)
#define QUAMBA_ENTER(fake) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr)
#else
#define QUAMBA_LEAVE(fake, to)
#define QUAMBA_ENTER(fake)
#endif

namespace quamba {
namespace emu {

/* Where a thread was left.  The scheduler's own has no stack here: it runs on the process's. */
struct Fiber {
    const void* stack = nullptr;
    size_t size = 0;
    void* fake = nullptr;  // AddressSanitizer's own stack
#if defined(__x86_64__)
    void* at = nullptr;
#else
    ucontext_t at;
#endif
};

#if defined(__x86_64__)
extern "C" void quamba_switch(void** from, void* to);
#endif

/* Goes on in `to`; comes back when something switches to `from`.  `last`: `from` is finished and never comes back. */
inline void switch_fiber(Fiber& from, Fiber& to, bool last = false) {
    (void)last;
    QUAMBA_LEAVE(last ? nullptr : &from.fake, to);
#if defined(__x86_64__)
    quamba_switch(&from.at, to.at);
#else
    swapcontext(&from.at, &to.at);
#endif
    QUAMBA_ENTER(from.fake);
}

/* Ready to run `entry`, which must not return. */
inline void prepare(Fiber& fiber, char* stack, size_t size, void (*entry)()) {
    fiber.stack = stack;
    fiber.size = size;
    fiber.fake = nullptr;
#if defined(__x86_64__)
    // The address of `entry` lies on a 16-byte boundary, as after a call.
    void** top = reinterpret_cast<void**>(stack + size - 64);
    top[0] = reinterpret_cast<void*>(entry);
    for (int i = 1; i <= 6; i++) top[-i] = nullptr;
    fiber.at = top - 6;
#else
    getcontext(&fiber.at);
    fiber.at.uc_stack.ss_sp = stack;
    fiber.at.uc_stack.ss_size = size;
    fiber.at.uc_link = nullptr;
    makecontext(&fiber.at, entry, 0);
#endif
}

/* Called first thing in `entry`. */
inline void entered(Fiber& fiber) {
    (void)fiber;
    QUAMBA_ENTER(fiber.fake);
}

inline char* stacks(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

}  // namespace emu
}  // namespace quamba
