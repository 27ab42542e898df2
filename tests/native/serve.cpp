/* Runs plans of the native library for a Python of another architecture (tests/native/remote.py).
 *
 *     serve FILE      FILE is the memory that both map: pointers travel as offsets into it
 *
 * One request a line on standard input, one answer a line on standard output; requests are the functions of
 * csrc/cpu/api.cpp. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

extern "C" {
const char* quamba_instruction_sets();
void* quamba_team_open(int threads);
void quamba_team_close(void* team);
void* quamba_plan_open(const char* instruction_set, int threads);
void quamba_plan_close(void* plan);
int quamba_plan_add(void* plan, const char* op, int arrays, void* const* pointers, const int64_t* strides, int sizes,
                    const int64_t* size, int scalars, const float* scalar, int state);
int64_t quamba_plan_ready(void* plan);
double quamba_plan_run(void* plan, void* team, double* times);
}

namespace {

void* handle(std::istream& in) {
    uintptr_t value = 0;
    in >> value;
    return reinterpret_cast<void*>(value);
}

/* "plan op state", then three lists, each with its length before it: offset and stride, size, bits of a scalar. */
int add(std::istream& in, char* memory) {
    void* plan = handle(in);
    std::string op;
    int state = 0, arrays = 0, sizes = 0, scalars = 0;
    in >> op >> state >> arrays;
    std::vector<void*> pointers;
    std::vector<int64_t> strides, size;
    std::vector<float> scalar;
    for (int i = 0; i < arrays; i++) {
        int64_t offset = 0, stride = 0;
        in >> offset >> stride;
        pointers.push_back(memory + offset), strides.push_back(stride);
    }
    in >> sizes;
    for (int i = 0; i < sizes; i++) {
        int64_t value = 0;
        in >> value;
        size.push_back(value);
    }
    in >> scalars;
    for (int i = 0; i < scalars; i++) {
        uint32_t bits = 0;
        float value;
        in >> bits;
        memcpy(&value, &bits, 4);
        scalar.push_back(value);
    }
    if (!in) return -3;
    return quamba_plan_add(plan, op.c_str(), arrays, pointers.data(), strides.data(), sizes, size.data(), scalars,
                           scalar.data(), state);
}

}  // namespace

int main(int count, char** arguments) {
    struct stat file;
    const int opened = count == 2 ? open(arguments[1], O_RDWR) : -1;
    if (opened < 0 || fstat(opened, &file)) return fprintf(stderr, "usage: serve FILE, the memory to share\n"), 2;
    void* mapped = mmap(nullptr, size_t(file.st_size), PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
    if (mapped == MAP_FAILED) return perror("mmap"), 2;
    char* memory = static_cast<char*>(mapped);
    std::string line, verb, name;
    std::cout.precision(9);
    while (std::getline(std::cin, line)) {
        std::istringstream in(line);
        int threads = 1;
        in >> verb;
        if (verb == "instruction_sets") std::cout << quamba_instruction_sets();
        else if (verb == "team_open") in >> threads, std::cout << uintptr_t(quamba_team_open(threads));
        else if (verb == "team_close") quamba_team_close(handle(in)), std::cout << 0;
        else if (verb == "plan_open") {
            in >> name >> threads;
            std::cout << uintptr_t(quamba_plan_open(name.c_str(), threads));
        } else if (verb == "plan_close") quamba_plan_close(handle(in)), std::cout << 0;
        else if (verb == "plan_add") std::cout << add(in, memory);
        else if (verb == "plan_ready") std::cout << quamba_plan_ready(handle(in));
        else if (verb == "plan_run") {
            void* plan = handle(in);
            std::cout << quamba_plan_run(plan, handle(in), nullptr);
        } else return std::cerr << "serve: no request " << verb << "\n", 2;
        std::cout << std::endl;
    }
    return 0;
}
