// Deadline: a point on CLOCK_MONOTONIC, taken when a blocking call is entered.
#pragma once

#include <cstdint>

namespace amxt {

int64_t monotonic_ns();

class Deadline {
 public:
  // timeout_ns from now: 0 polls, negative waits for ever.
  static Deadline after(int64_t timeout_ns);
  static Deadline never() { return Deadline(INT64_MAX); }

  bool passed() const { return at_ns_ != INT64_MAX && monotonic_ns() >= at_ns_; }
  bool is_never() const { return at_ns_ == INT64_MAX; }
  // Nanoseconds left, at least 0; INT64_MAX when there is no deadline.
  int64_t left_ns() const;
  // For poll(2): -1 for never, else rounded up to milliseconds, at most `cap_ms` when that is >= 0.
  int poll_ms(int cap_ms = -1) const;
  int64_t at_ns() const { return at_ns_; }
  Deadline earlier(Deadline other) const { return at_ns_ < other.at_ns_ ? *this : other; }

 private:
  explicit Deadline(int64_t at_ns) : at_ns_(at_ns) {}
  int64_t at_ns_;
};

}  // namespace amxt
