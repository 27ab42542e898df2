/* Races within a launch, as compute-sanitizer's racecheck finds them, and in global memory too: only where QUAMBA_RACES
 * is defined (races.cpp says how), otherwise nothing. */
#pragma once
#include <stddef.h>

namespace quamba {
namespace emu {

#ifdef QUAMBA_RACES
#define QUAMBA_UNWATCHED __attribute__((no_sanitize_thread))
void races_forget();                                        // another launch: other buffers
void races_buffer(const void* start, size_t bytes);         // memory that every block sees
void races_block(const void* shared, size_t bytes);         // a block starts, with this shared memory
void races_barrier();                                       // all threads of the block have met
void races_warp();                                          // the calling thread comes to a __syncwarp
void races_atomic(const void* at, size_t bytes);            // the calling thread's atomic access
void races_copy(const void* to, const void* from, bool on);  // the calling thread's 16 bytes are on their way, or there
#else
#define QUAMBA_UNWATCHED
inline void races_forget() {}
inline void races_buffer(const void*, size_t) {}
inline void races_block(const void*, size_t) {}
inline void races_barrier() {}
inline void races_warp() {}
inline void races_atomic(const void*, size_t) {}
inline void races_copy(const void*, const void*, bool) {}
#endif

}  // namespace emu
}  // namespace quamba
