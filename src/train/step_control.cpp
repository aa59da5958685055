#include "train/step_control.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/futex.h"

namespace amxt::train {
namespace {

enum Decision : uint32_t { kUndecided = 0, kCommitted = 1, kCancelled = 2, kBeingCancelled = 3 };

// Tag of a slot that is being made ready.
constexpr uint32_t kClaiming = 0xFFFFFFFF;

constexpr int64_t kLookAroundNs = 100'000'000;
constexpr int kSpins = 2000;

}  // namespace

int64_t StepControl::shared_bytes(int ranks) {
  return static_cast<int64_t>(kSlots * sizeof(Slot) +
                              static_cast<size_t>(ranks) * sizeof(std::atomic<uint32_t>));
}

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
  return Error(static_cast<Code>(s.code), fmt::format("rank {}: {}", s.rank, s.reason))
      .with_rank(s.rank);
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
    futex_wake_all(&s.started, FutexScope::kShared);
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
    return cancel(
        Error(Code::kCancelled, "the step was cancelled before its commit; nothing has changed"));
  }
  if (limits_.deadline.passed()) {
    return cancel(Error(Code::kTimeout,
                        "the deadline of the step passed before its commit; nothing has changed"));
  }
  return {};
}

// Makes the slot of the attempt ready, whoever comes first. It is free when every rank has come to a later attempt than the one that it
// served before.
Status StepControl::claim() {
  const auto world = static_cast<size_t>(group_->local_size());
  newest_attempts()[group_->local_rank()].store(attempt_, std::memory_order_release);
  for (size_t rank = 0; rank < world; ++rank) {
    if (attempt_ >= kSlots &&
        newest_attempts()[rank].load(std::memory_order_acquire) <= attempt_ - kSlots) {
      return Error(
                 Code::kCommTimeout,
                 fmt::format("rank {} is {} calls behind this rank, which gave up on each of them",
                             rank, kSlots))
          .with_rank(static_cast<int32_t>(rank));
    }
  }
  Slot& s = slot();
  for (;;) {
    uint32_t tag = s.attempt.load(std::memory_order_acquire);
    if (tag == attempt_) return {};
    if (tag != kClaiming &&
        s.attempt.compare_exchange_strong(tag, kClaiming, std::memory_order_acq_rel)) {
      for (std::atomic<uint32_t>* word :
           {&s.entered, &s.started, &s.arrived, &s.generation, &s.decision, &s.finished}) {
        word->store(0, std::memory_order_relaxed);
      }
      s.attempt.store(attempt_, std::memory_order_release);
      return {};
    }
    spin_pause();
    AMXT_TRY(group_->check());
  }
}

Status StepControl::start(const Limits& limits) {
  limits_ = limits;
  ++attempt_;
  AMXT_TRY(group_->check());
  AMXT_TRY(claim());
  Slot& s = slot();
  if (s.entered.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<uint32_t>(group_->local_size())) {
    s.started.store(1, std::memory_order_release);
    futex_wake_all(&s.started, FutexScope::kShared);
  } else {
    AMXT_TRY(wait_change(&s.started, 0, true));
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
