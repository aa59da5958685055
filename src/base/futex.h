// Futex: wait on and wake a 32-bit word, private to the process or shared between processes.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/deadline.h"

namespace amxt {

enum class FutexScope { kPrivate, kShared };

// Sleeps while *word == expected, until woken, a signal, or the deadline. Spurious returns are allowed: callers loop.
void futex_wait(const std::atomic<uint32_t>* word, uint32_t expected, FutexScope scope,
                Deadline deadline);
void futex_wake_all(const std::atomic<uint32_t>* word, FutexScope scope);

// A short pause inside a spin loop.
void spin_pause();

}  // namespace amxt
