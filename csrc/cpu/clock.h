#pragma once
#include <time.h>

namespace quamba {

/* Seconds since some moment, never backwards.  Static, so that code of one instruction set never runs another's copy. */
static inline double seconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

}  // namespace quamba
