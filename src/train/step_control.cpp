#include "train/step_control.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/futex.h"

namespace amxt::train {
namespace {

enum Decision : uint32_t { kUndecided = 0, kCommitted = 1, kCancelled = 2, kBeingCancelled = 3 };

constexpr int64_t kLookAroundNs = 100'000'000;
constexpr int kSpins = 2000;

}  // namespace

int64_t StepControl::shared_bytes() { return static_cast<int64_t>(sizeof(Shared)); }

Status StepControl::ended() {
  Slot& s = slot();
  uint32_t decision = s.decision.load(std::memory_order_acquire);
  while (decision == kBeingCancelled) {
    spin_pause();
    AMXT_TRY(group_->check());  // the canceller may have died while it wrote
    decision = s.decision.load(std::memory_order_acquire);
  }
  if (decision != kCancelled) return {};
  if (s.rank == group_->rank()) return Error(static_cast<Code>(s.code), s.reason);
  return Error(static_cast<Code>(s.code), fmt::format("rank {}: {}", s.rank, s.reason)).with_rank(s.rank);
}

Status StepControl::cancel(const Error& error) {
  Slot& s = slot();
  uint32_t expected = kUndecided;
  if (s.decision.compare_exchange_strong(expected, kBeingCancelled, std::memory_order_acq_rel)) {
    s.code = static_cast<int32_t>(error.code());
    s.rank = group_->rank();
    const size_t length = std::min(error.message().size(), sizeof s.reason - 1);
    std::memcpy(s.reason, error.message().data(), length);
    s.reason[length] = '\0';
    s.decision.store(kCancelled, std::memory_order_release);
    futex_wake_all(&s.decision, FutexScope::kShared);
    futex_wake_all(&s.generation, FutexScope::kShared);
    futex_wake_all(&shared_->generation, FutexScope::kShared);
  }
  return ended();
}

Status StepControl::wait_change(const std::atomic<uint32_t>* word, uint32_t seen, bool can_end) {
  if (!group_->oversubscribed()) {
    for (int i = 0; i < kSpins; ++i) {
      if (word->load(std::memory_order_acquire) != seen) return {};
      spin_pause();
    }
  }
  for (;;) {
    if (word->load(std::memory_order_acquire) != seen) return {};
    AMXT_TRY(group_->check());
    if (can_end) AMXT_TRY(poll());
    // poll() may have found the attempt committed: then `word` has changed.
    if (word->load(std::memory_order_acquire) != seen) return {};
    const Deadline look = Deadline::after(kLookAroundNs);
    futex_wait(word, seen, FutexScope::kShared, can_end ? look.earlier(limits_.deadline) : look);
  }
}

Status StepControl::poll() {
  AMXT_TRY(ended());
  if (limits_.cancel != nullptr && limits_.cancel->load(std::memory_order_relaxed)) {
    return cancel(Error(Code::kCancelled, "the step was cancelled before its commit; nothing has changed"));
  }
  if (limits_.deadline.passed()) {
    return cancel(Error(Code::kTimeout, "the deadline of the step passed before its commit; nothing has changed"));
  }
  return {};
}

Status StepControl::start(const Limits& limits) {
  limits_ = limits;
  ++attempt_;
  const uint32_t all = attempt_ * static_cast<uint32_t>(group_->local_size());
  if (shared_->starts.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
    // Everyone has left the attempt before this one: its slot is free for the attempt after this one.
    Slot& next = shared_->slots[(attempt_ + 1) & 1];
    next.arrived.store(0, std::memory_order_relaxed);
    next.generation.store(0, std::memory_order_relaxed);
    next.finished.store(0, std::memory_order_relaxed);
    next.decision.store(kUndecided, std::memory_order_relaxed);
    shared_->generation.store(attempt_, std::memory_order_release);
    futex_wake_all(&shared_->generation, FutexScope::kShared);
  } else {
    AMXT_TRY(wait_change(&shared_->generation, attempt_ - 1, true));
  }
  return poll();
}

Status StepControl::barrier() {
  AMXT_TRY(poll());
  Slot& s = slot();
  const uint32_t seen = s.generation.load(std::memory_order_acquire);
  const auto world = static_cast<uint32_t>(group_->local_size());
  if ((s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1) % world == 0) {
    s.generation.store(seen + 1, std::memory_order_release);
    futex_wake_all(&s.generation, FutexScope::kShared);
    return {};
  }
  return wait_change(&s.generation, seen, true);
}

Status StepControl::commit() {
  AMXT_TRY(poll());
  Slot& s = slot();
  const auto world = static_cast<uint32_t>(group_->local_size());
  if ((s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1) % world == 0) {
    uint32_t expected = kUndecided;
    if (s.decision.compare_exchange_strong(expected, kCommitted, std::memory_order_acq_rel)) {
      futex_wake_all(&s.decision, FutexScope::kShared);
      return {};
    }
    return ended();
  }
  AMXT_TRY(wait_change(&s.decision, kUndecided, true));
  return ended();
}

Status StepControl::finish() {
  Slot& s = slot();
  const auto world = static_cast<uint32_t>(group_->local_size());
  if (s.finished.fetch_add(1, std::memory_order_acq_rel) + 1 == world) {
    futex_wake_all(&s.finished, FutexScope::kShared);
    return {};
  }
  for (;;) {
    const uint32_t seen = s.finished.load(std::memory_order_acquire);
    if (seen == world) return {};
    AMXT_TRY(wait_change(&s.finished, seen, false));
  }
}

}  // namespace amxt::train
