#include "base/futex.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace amxt {

void futex_wait(const std::atomic<uint32_t>* word, uint32_t expected, FutexScope scope,
                Deadline deadline) {
  timespec left{};
  timespec* timeout = nullptr;
  if (!deadline.is_never()) {
    const int64_t ns = deadline.left_ns();
    if (ns == 0) return;
    left = {ns / 1'000'000'000, ns % 1'000'000'000};
    timeout = &left;
  }
  const int operation = scope == FutexScope::kPrivate ? FUTEX_WAIT_PRIVATE : FUTEX_WAIT;
  syscall(SYS_futex, word, operation, expected, timeout, nullptr, 0);
}

void futex_wake_all(const std::atomic<uint32_t>* word, FutexScope scope) {
  const int operation = scope == FutexScope::kPrivate ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE;
  syscall(SYS_futex, word, operation, INT_MAX, nullptr, nullptr, 0);
}

void spin_pause() { _mm_pause(); }

}  // namespace amxt
