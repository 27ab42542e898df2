/* Every instruction set's table of kernels, and which of them this CPU and its operating system really run. */
#pragma once
#include "call.h"

namespace quamba {

struct Table {
    const char* name;
    const Kernel* kernels;
    int count;
    void (*peak)(double limit, double* dots, double* fmas);  // multiply-adds a second of one thread, measured for 2 x limit seconds
};

/* Fastest first; an entry is there if it was compiled in and this machine can run it. */
int tables(const Table** found);

const Kernel* find(const Table& table, const char* op);

}  // namespace quamba
