/* What a cubin's ELF says of its kernels: the section .nv.info.NAME has attributes as the driver reads them. */
#include <elf.h>
#include <string.h>

#include <algorithm>

#include "driver.h"

namespace quamba {
namespace driver {
namespace {

enum Attribute { MAX_THREADS = 0x05, KPARAM_INFO = 0x17, CBANK_PARAM_SIZE = 0x19 };
constexpr unsigned WITH_DATA = 4;  // the form of an attribute whose data follows

template <class T>
T at(const char* place) {
    T value;
    memcpy(&value, place, sizeof value);
    return value;
}

void read_attributes(KernelFacts& facts, const char* from, const char* to) {
    while (from + 4 <= to) {
        const unsigned form = uint8_t(from[0]), attribute = uint8_t(from[1]), value = at<uint16_t>(from + 2);
        from += 4;
        if (attribute == CBANK_PARAM_SIZE) facts.bytes = value;
        if (form != WITH_DATA) continue;
        if (attribute == MAX_THREADS) facts.most_threads = at<uint32_t>(from);
        if (attribute == KPARAM_INFO) {
            const unsigned ordinal = at<uint16_t>(from + 4), offset = at<uint16_t>(from + 6);
            facts.parameters.resize(std::max<size_t>(facts.parameters.size(), ordinal + 1));
            facts.parameters[ordinal] = {offset, at<uint32_t>(from + 8) >> 18};
        }
        from += value;
    }
}

}  // namespace

bool read_cubin(Cubin& cubin, const void* image) {
    const char* start = static_cast<const char*>(image);
    const Elf64_Ehdr header = at<Elf64_Ehdr>(start);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_machine != 190) return false;
    const bool twelve = header.e_ident[EI_OSABI] == 0x33;
    cubin.sm = twelve ? header.e_flags & 0xff : header.e_flags >> 8 & 0xff;
    cubin.toolkit = twelve ? header.e_version : 130;
    const auto section = [&](unsigned i) { return at<Elf64_Shdr>(start + header.e_shoff + i * sizeof(Elf64_Shdr)); };
    const char* names = start + section(header.e_shstrndx).sh_offset;
    for (unsigned i = 0; i < header.e_shnum; i++) {
        const Elf64_Shdr one = section(i);
        const std::string name = names + one.sh_name, info = ".nv.info.", text = ".text.";
        if (!name.compare(0, info.size(), info))
            read_attributes(cubin.kernels[name.substr(info.size())], start + one.sh_offset,
                            start + one.sh_offset + one.sh_size);
        if (!name.compare(0, text.size(), text)) cubin.kernels[name.substr(text.size())].registers = one.sh_info >> 24;
    }
    return true;
}

}  // namespace driver
}  // namespace quamba
