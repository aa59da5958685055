// StepControl: how the ranks of a node go through one step together, and how any of them ends it before the commit.
//
// A step is an attempt: start(), any number of barrier()s, commit(), finish(). Its one decision word goes from undecided to committed
// (the last rank to reach commit() does it) or to cancelled (whoever cancels first does it), once, by compare-and-swap: so all ranks
// leave the attempt the same way, whoever times out when. A rank that is late to an attempt that was cancelled leaves it at once.
//
// Lives in memory shared by the ranks; one object per rank. Waits spin briefly (not when cores are oversubscribed), then sleep on a
// futex, and look at the deadline, the cancel flag and the group (a peer's death) at least every 100 ms.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/group.h"

namespace amxt::train {

class StepControl {
 public:
  // Bytes of shared, zeroed memory that one StepControl of all ranks needs.
  static int64_t shared_bytes();

  StepControl(void* shared, comm::Group* group) : shared_(static_cast<Shared*>(shared)), group_(group) {}

  // What ends the waits of this rank's attempt: set before start().
  struct Limits {
    Deadline deadline = Deadline::never();
    const std::atomic<bool>* cancel = nullptr;
  };

  // All ranks are in, and everything that they wrote before is seen.
  Status start(const Limits& limits);
  // Also a place to leave: kCancelled, kTimeout or the error that another rank gave; a group error when a peer is lost.
  Status barrier();
  // Looks whether the attempt has ended otherwise, without waiting.
  Status poll();
  // After this returns success the step is committed on all ranks.
  Status commit();
  // The end of a committed step: all ranks have published. Only a lost peer (or an abort) ends this wait.
  Status finish();
  // Ends the attempt for all ranks with this error, unless it is committed. Returns what the attempt ended with (success: committed).
  Status cancel(const Error& error);

 private:
  struct Slot {
    std::atomic<uint32_t> arrived;
    std::atomic<uint32_t> generation;
    std::atomic<uint32_t> decision;
    std::atomic<uint32_t> finished;
    int32_t code;
    int32_t rank;
    char reason[512];
  };
  struct Shared {
    std::atomic<uint32_t> starts;       // arrivals at start(), over all attempts
    std::atomic<uint32_t> generation;   // attempts that all ranks have started
    alignas(64) Slot slots[2];          // by the parity of the attempt
  };

  Slot& slot() { return shared_->slots[attempt_ & 1]; }
  // Waits until *word != seen. `can_end`: the attempt's decision, deadline and cancel flag end it too.
  Status wait_change(const std::atomic<uint32_t>* word, uint32_t seen, bool can_end);
  Status ended();

  Shared* shared_;
  comm::Group* group_;
  Limits limits_;
  uint32_t attempt_ = 0;
};

}  // namespace amxt::train
