// Trace: which operation a thread was busy with, from when to when, and how much work it was. Where nobody traces, a span costs a comparison.
//
// Thread-safety: the spans of a trace are those of one thread at a time. Recording allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/deadline.h"

namespace amxt {

class Trace {
 public:
  struct Event {
    const char* name;  // of static storage
    int64_t begin_ns, end_ns;
    double flop, bytes;  // of the operation; bytes as often as memory must be touched
  };

  // What comes after `capacity` events is counted, and left out.
  explicit Trace(size_t capacity) { events_.reserve(capacity); }

  void add(const Event& event) {
    if (events_.size() < events_.capacity()) {
      events_.push_back(event);
    } else {
      ++left_out_;
    }
  }
  const std::vector<Event>& events() const { return events_; }
  int64_t left_out() const { return left_out_; }

 private:
  std::vector<Event> events_;
  int64_t left_out_ = 0;
};

// An operation, from here to the end of the scope; `trace` may be null.
class Span {
 public:
  Span(Trace* trace, const char* name, double flop = 0, double bytes = 0)
      : trace_(trace), event_{name, trace != nullptr ? monotonic_ns() : 0, 0, flop, bytes} {}
  ~Span() {
    if (trace_ == nullptr) return;
    event_.end_ns = monotonic_ns();
    trace_->add(event_);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Trace* const trace_;
  Trace::Event event_;
};

}  // namespace amxt
