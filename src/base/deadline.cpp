#include "base/deadline.h"

#include <time.h>

#include <algorithm>

namespace amxt {

int64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

Deadline Deadline::after(int64_t timeout_ns) {
  if (timeout_ns < 0) return never();
  const int64_t now = monotonic_ns();
  if (timeout_ns >= INT64_MAX - now) return never();
  return Deadline(now + timeout_ns);
}

int64_t Deadline::left_ns() const {
  if (is_never()) return INT64_MAX;
  return std::max<int64_t>(0, at_ns_ - monotonic_ns());
}

int Deadline::poll_ms(int cap_ms) const {
  if (is_never()) return cap_ms;
  const int64_t ms = std::min<int64_t>((left_ns() + 999'999) / 1'000'000, INT32_MAX);
  return static_cast<int>(cap_ms >= 0 ? std::min<int64_t>(ms, cap_ms) : ms);
}

}  // namespace amxt
