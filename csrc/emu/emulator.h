/* How a kernel becomes callable by name: one `Entry` each, in the file that tests/cuda/emulator.py writes around a
 * .cu; and how it is launched. */
#pragma once
#include <pthread.h>
#include <unistd.h>

#include <type_traits>
#include <utility>

#include "cuda.h"

namespace quamba {
namespace emu {

enum Kind : uint32_t { POINTER, INT, FLOAT, ANY };  // ANY: bytes of a driver's argument buffer, whatever they are

struct Argument {
    uint32_t kind;
    uint64_t bits;
};

template <class T>
inline T value_of(const Argument& a) {
    const uint32_t expected = std::is_pointer<T>::value ? POINTER : std::is_same<T, float>::value ? FLOAT : INT;
    if (a.kind != expected && a.kind != ANY) fail("an argument is of another kind than the kernel's");
    T value;
    memcpy(&value, &a.bits, sizeof(T));
    return value;
}

struct Entry {
    const char* name;
    void* function;
    int arity;
    void (*call)(void*, const Argument*);
    Entry* next;

    Entry(const char* name, void* function, int arity, void (*call)(void*, const Argument*));
};

const Entry* find(const char* name);  // or null

/* One launch; blocks and threads in ascending order, or all in descending. */
void launch(const Entry& kernel, dim3 grid, dim3 block, size_t shared_bytes, bool reversed, const Argument* arguments);

template <class... Args>
struct Kernel : Entry {
    Kernel(const char* name, void (*function)(Args...))
        : Entry(name, reinterpret_cast<void*>(function), int(sizeof...(Args)), &call_with) {}

    static void call_with(void* function, const Argument* given) {
        apply(reinterpret_cast<void (*)(Args...)>(function), given, std::index_sequence_for<Args...>());
    }
    template <size_t... I>
    static void apply(void (*function)(Args...), const Argument* given, std::index_sequence<I...>) {
        function(value_of<Args>(given[I])...);
    }
};

}  // namespace emu
}  // namespace quamba
