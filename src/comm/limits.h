// Limits of a blocking call: when it ends at the latest, and who may end it before.
#pragma once

#include <atomic>

#include "base/deadline.h"

namespace amxt::comm {

struct Limits {
  Limits() = default;
  Limits(Deadline until, const std::atomic<bool>* by = nullptr) : deadline(until), cancel(by) {}

  bool cancelled() const { return cancel != nullptr && cancel->load(std::memory_order_acquire); }

  Deadline deadline = Deadline::never();
  const std::atomic<bool>* cancel = nullptr;  // set by another thread: kCancelled
};

}  // namespace amxt::comm
