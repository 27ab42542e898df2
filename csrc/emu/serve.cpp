/* Runs single kernels that it is told to run: a program of its own, so that AddressSanitizer sees every byte it
 * touches.
 *
 * On standard input come launches; on standard output goes, for each, a "!" and the buffers as the kernel left them
 * (tests/cuda/emulator.py is the other end).  Every buffer is an allocation of exactly its size: one element beyond
 * its end is an error.  Integers are little-endian:
 *
 *     u32 length, the kernel's name; u32 grid x y z, block x y z, shared bytes, reversed
 *     u32 buffers, for each u64 size, bytes
 *     u32 arguments, for each u32 kind (0 pointer, 1 int, 2 float), u32 buffer, u64 offset or bits */
#include "emulator.h"

#include <string>
#include <vector>

namespace quamba {
namespace emu {
namespace {

void read(void* into, size_t bytes) {
    if (fread(into, 1, bytes, stdin) != bytes) exit(0);  // the other end has gone
}
template <class T>
T read() {
    T value;
    read(&value, sizeof value);
    return value;
}

void serve_one() {
    std::string name(read<uint32_t>(), ' ');
    read(&name[0], name.size());
    const dim3 grid = read<dim3>(), block = read<dim3>();
    const uint32_t shared_bytes = read<uint32_t>(), reversed = read<uint32_t>();
    std::vector<std::pair<char*, uint64_t>> buffers(read<uint32_t>());
    races_forget();
    for (auto& buffer : buffers) {
        buffer.second = read<uint64_t>();
        if (posix_memalign(reinterpret_cast<void**>(&buffer.first), 64, buffer.second)) fail("no memory");
        read(buffer.first, buffer.second);
        races_buffer(buffer.first, buffer.second);
    }
    std::vector<Argument> given(read<uint32_t>());
    for (Argument& a : given) {
        a.kind = read<uint32_t>();
        const uint32_t buffer = read<uint32_t>();
        a.bits = read<uint64_t>();
        if (a.kind == POINTER) a.bits += reinterpret_cast<uint64_t>(buffers.at(buffer).first);
    }
    const Entry* kernel = find(name.c_str());
    if (!kernel) fail(("there is no kernel " + name).c_str());
    if (size_t(kernel->arity) != given.size()) fail((name + " takes another number of arguments").c_str());
    launch(*kernel, grid, block, shared_bytes, reversed, given.data());
    fputc('!', stdout);
    for (auto& buffer : buffers) {
        fwrite(buffer.first, 1, buffer.second, stdout);
        free(buffer.first);
    }
    fflush(stdout);
}

}  // namespace
}  // namespace emu
}  // namespace quamba

int main() {
    for (;;) quamba::emu::serve_one();
}
