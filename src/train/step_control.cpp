#include "train/step_control.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/futex.h"

namespace amxt::train {
namespace {

enum Decision : uint32_t {
  kUndecided = 0,
  kCommitted = 1,
  kCancelled = 2,
  kBeingCancelled = 3,
  // Several nodes: the first one will decide.
  kPrepared = 4,
  kAsked = 5,  // for a cancel
};

// Tag of a slot that is being made ready.
constexpr uint32_t kClaiming = 0xFFFFFFFF;

constexpr int64_t kLookAroundNs = 100'000'000;
constexpr int kSpins = 2000;
constexpr size_t kMaxEarly = 4096;
constexpr int kClaimSpins = 1'000'000;

}  // namespace

StepControl::StepControl(void* shared, comm::Group* group)
    : slots_(static_cast<Slot*>(shared)), group_(group) {
  if (group->node_count() == 1) return;
  group->set_listener([this](int, std::string_view bytes) {
    Message message;
    if (bytes.size() != sizeof message) return;
    std::memcpy(&message, bytes.data(), sizeof message);
    message.reason[sizeof message.reason - 1] = '\0';
    hear(message);
  });
}

StepControl::~StepControl() {
  if (group_->node_count() > 1) group_->set_listener(nullptr);
}

void StepControl::tell(int node, Kind kind, const Error* error) {
  Message message{};
  message.attempt = attempt_;
  message.kind = kind;
  if (error != nullptr) {
    message.code = static_cast<int32_t>(error->code());
    message.rank = group_->rank();
    const size_t length = std::min(error->message().size(), sizeof message.reason - 1);
    std::memcpy(message.reason, error->message().data(), length);
  }
  post(node, message);
}

void StepControl::post(int node, const Message& message) {
  static_assert(sizeof message <= comm::Group::kMaxPost);
  group_->post(group_->nodes().leader(node),
               std::string_view(reinterpret_cast<const char*>(&message), sizeof message));
}

void StepControl::tell_others(Kind kind, const Error* error) {
  for (int node = 0; node < group_->node_count(); ++node) {
    if (node != group_->node()) tell(node, kind, error);
  }
}

// On the group's thread, on leaders.
void StepControl::hear(const Message& message) {
  int behind = -1;
  // A rank that is making the slot ready is done in a moment, unless it dies.
  for (int i = 0; i < kClaimSpins && behind < 0; ++i) {
    if (try_claim(message.attempt, &behind)) return apply(message);
    spin_pause();
  }
  {
    const std::lock_guard lock(mutex_);
    // Looked at again: a claim() that has been through since would not find the message.
    if (!try_claim(message.attempt, &behind)) {
      if (early_.size() < kMaxEarly) {
        early_.push_back(message);
      } else {
        overrun_ = true;
      }
      return;
    }
  }
  apply(message);
}

void StepControl::apply(const Message& message) {
  Slot& s = slot_of(message.attempt);
  switch (message.kind) {
    case Kind::kIn:
      return node_is_in(s);
    case Kind::kPrepared:
      return node_is_prepared(message.attempt);
    case Kind::kFinished:
      return node_has_finished(s);
    case Kind::kCancelled:
      for (const uint32_t from : {kUndecided, kPrepared, kAsked}) {
        if (!cancel_slot(s, from, message.code, message.rank, message.reason)) continue;
        for (int node = 1; group_->node() == 0 && node < group_->node_count(); ++node)
          post(node, message);
        return;
      }
      return;
    case Kind::kCommitted: {
      uint32_t expected = kPrepared;
      s.decision.compare_exchange_strong(expected, kCommitted, std::memory_order_acq_rel);
      futex_wake_all(&s.decision, FutexScope::kShared);
      return;
    }
  }
}

void StepControl::node_is_in(Slot& s) {
  if (s.nodes_in.fetch_add(1, std::memory_order_acq_rel) + 1 !=
      static_cast<uint32_t>(group_->node_count()))
    return;
  s.started.store(1, std::memory_order_release);
  futex_wake_all(&s.started, FutexScope::kShared);
}

// On the first node, of any node: the last one commits.
void StepControl::node_is_prepared(uint32_t attempt) {
  Slot& s = slot_of(attempt);
  if (s.nodes_prepared.fetch_add(1, std::memory_order_acq_rel) + 1 !=
      static_cast<uint32_t>(group_->node_count()))
    return;
  uint32_t expected = kPrepared;
  if (!s.decision.compare_exchange_strong(expected, kCommitted, std::memory_order_acq_rel)) return;
  Message message{};
  message.attempt = attempt;
  message.kind = Kind::kCommitted;
  for (int node = 1; node < group_->node_count(); ++node) post(node, message);
  futex_wake_all(&s.decision, FutexScope::kShared);
}

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

bool StepControl::cancel_slot(Slot& s, uint32_t from, int32_t code, int32_t rank,
                              std::string_view reason) {
  if (!s.decision.compare_exchange_strong(from, kBeingCancelled, std::memory_order_acq_rel))
    return false;
  s.code = code;
  s.rank = rank;
  const size_t length = std::min(reason.size(), sizeof s.reason - 1);
  std::memcpy(s.reason, reason.data(), length);
  s.reason[length] = '\0';
  s.decision.store(kCancelled, std::memory_order_release);
  futex_wake_all(&s.decision, FutexScope::kShared);
  futex_wake_all(&s.generation, FutexScope::kShared);
  futex_wake_all(&s.started, FutexScope::kShared);
  return true;
}

Status StepControl::cancel(const Error& error) {
  Slot& s = slot();
  if (group_->node() == 0) {
    for (const uint32_t from : {kUndecided, kPrepared}) {
      if (!cancel_slot(s, from, static_cast<int32_t>(error.code()), group_->rank(),
                       error.message()))
        continue;
      tell_others(Kind::kCancelled, &error);
      break;
    }
    return ended();
  }
  uint32_t decision = kUndecided;
  if (s.decision.compare_exchange_strong(decision, kAsked, std::memory_order_acq_rel) ||
      decision == kPrepared)
    tell(0, Kind::kCancelled, &error);
  return settle();
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

// Makes the slot of an attempt ready, whoever comes first. It is free when every rank of the node has come to a later attempt than the one
// that it served before. Else false, and who is `behind`, or -1 when another is making it ready just now.
bool StepControl::try_claim(uint32_t attempt, int* behind) {
  for (int rank = 0; rank < group_->local_size(); ++rank) {
    if (attempt >= kSlots &&
        newest_attempts()[rank].load(std::memory_order_acquire) <= attempt - kSlots) {
      *behind = rank;
      return false;
    }
  }
  *behind = -1;
  Slot& s = slot_of(attempt);
  uint32_t tag = s.attempt.load(std::memory_order_acquire);
  if (tag == attempt) return true;
  if (tag == kClaiming ||
      !s.attempt.compare_exchange_strong(tag, kClaiming, std::memory_order_acq_rel))
    return false;
  for (std::atomic<uint32_t>* word :
       {&s.entered, &s.started, &s.arrived, &s.generation, &s.decision, &s.finished, &s.nodes_in,
        &s.nodes_prepared, &s.nodes_finished, &s.over}) {
    word->store(0, std::memory_order_relaxed);
  }
  s.attempt.store(attempt, std::memory_order_release);
  return true;
}

Status StepControl::claim() {
  newest_attempts()[group_->local_rank()].store(attempt_, std::memory_order_release);
  int behind = -1;
  while (!try_claim(attempt_, &behind)) {
    if (behind >= 0) {
      const int rank = group_->nodes().on(group_->node())[static_cast<size_t>(behind)];
      return Error(
                 Code::kCommTimeout,
                 fmt::format("rank {} is {} calls behind this rank, which gave up on each of them",
                             rank, kSlots))
          .with_rank(rank);
    }
    spin_pause();
    AMXT_TRY(group_->check());
  }
  if (group_->node_count() == 1) return {};
  // What came before a slot was free for it. On other ranks than the leader there is none.
  std::vector<Message> ready;
  {
    const std::lock_guard lock(mutex_);
    if (overrun_) {
      group_->abort(fmt::format("other nodes gave up on more than {} calls that it had not come to",
                                kMaxEarly / 2));
      return group_->check();
    }
    std::erase_if(early_, [&](const Message& message) {
      if (!try_claim(message.attempt, &behind)) return false;
      ready.push_back(message);
      return true;
    });
  }
  for (const Message& message : ready) apply(message);
  return {};
}

Status StepControl::start(const Limits& limits) {
  limits_ = limits;
  ++attempt_;
  AMXT_TRY(group_->check());
  AMXT_TRY(claim());
  Slot& s = slot();
  if (s.entered.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<uint32_t>(group_->local_size())) {
    node_is_in(s);
    tell_others(Kind::kIn);
  }
  AMXT_TRY(wait_change(&s.started, 0, true));
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
    const uint32_t next = group_->node_count() == 1 ? kCommitted : kPrepared;
    if (!s.decision.compare_exchange_strong(expected, next, std::memory_order_acq_rel))
      return settle();  // a cancel was before it
    futex_wake_all(&s.decision, FutexScope::kShared);
    if (next == kCommitted) return {};
    if (group_->node() == 0) {
      node_is_prepared(attempt_);
    } else {
      tell(0, Kind::kPrepared);
    }
  }
  AMXT_TRY(wait_change(&s.decision, kUndecided, true));
  AMXT_TRY(wait_change(&s.decision, kPrepared, true));
  return settle();
}

// The first node will say how the attempt ended.
Status StepControl::settle() {
  Slot& s = slot();
  for (;;) {
    const uint32_t decision = s.decision.load(std::memory_order_acquire);
    if (decision != kPrepared && decision != kAsked) return ended();
    AMXT_TRY(wait_change(&s.decision, decision, false));
  }
}

void StepControl::node_has_finished(Slot& s) {
  if (s.nodes_finished.fetch_add(1, std::memory_order_acq_rel) + 1 !=
      static_cast<uint32_t>(group_->node_count()))
    return;
  s.over.store(1, std::memory_order_release);
  futex_wake_all(&s.over, FutexScope::kShared);
}

Status StepControl::finish() {
  Slot& s = slot();
  if (s.finished.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<uint32_t>(group_->local_size())) {
    tell_others(Kind::kFinished);
    node_has_finished(s);
  }
  return wait_change(&s.over, 0, false);
}

}  // namespace amxt::train
