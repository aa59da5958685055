// StepControl: how the ranks of a job go through one step together, and how any of them ends it before the commit.
//
// A step is an attempt: start(), any number of barrier()s, commit(), finish(). Its one decision word goes from undecided to committed
// (the last rank to reach commit() does it) or to cancelled (whoever cancels first does it), once, by compare-and-swap: so all ranks
// leave the attempt the same way, whoever times out when. A rank that is late to an attempt that was cancelled leaves it at once: calls
// stay paired, the n-th of one rank with the n-th of every other. A rank may be ahead of the slowest by the attempts that it cancelled.
//
// Each node has its own word, and the first node's is the one that counts. A node is prepared when all its ranks have come to commit(), and
// the first node commits when every node is. Any rank may ask it for a cancel; before its node is prepared that can't fail. The first node
// cancels for all, with the error of the first that it hears of. What the nodes tell each other are the group's small
// messages, to the leader of each node. A node that loses the first one while it waits for the word can't know how the step ended: the
// group is dead then, and the state is a checkpoint's.
//
// Lives in memory shared by the ranks of a node; one object per rank. Waits spin briefly (not when cores are oversubscribed), then sleep on
// a futex, and look at the deadline, the cancel flag and the group (a peer's death) at least every 100 ms.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/group.h"

namespace amxt::train {

class StepControl {
 public:
  // Bytes of shared, zeroed memory that the StepControls of a node's ranks need.
  static int64_t shared_bytes(int ranks);

  // Takes the group's listener while it lives, when there are several nodes. No rank may start() before all have made theirs.
  StepControl(void* shared, comm::Group* group);
  ~StepControl();
  StepControl(const StepControl&) = delete;
  StepControl& operator=(const StepControl&) = delete;

  // What ends the waits of this rank's attempt: set before start().
  struct Limits {
    Deadline deadline = Deadline::never();
    const std::atomic<bool>* cancel = nullptr;
  };

  // All ranks are in, and everything that those of this node wrote before is seen.
  Status start(const Limits& limits);
  // Of the node's ranks. Also a place to leave: kCancelled, kTimeout or the error that another rank gave;
  // a group error when a peer is lost.
  Status barrier();
  // Looks whether the attempt has ended otherwise, without waiting.
  Status poll();
  // After this returns success the step is committed on all ranks.
  Status commit();
  // The end of a committed step: all ranks have published, and got what they were sent. Only a lost peer (or an abort) ends this wait.
  Status finish();
  // Ends the attempt for all ranks with this error, unless it is committed. Returns what the attempt ended with (success: committed).
  Status cancel(const Error& error);

 private:
  // Attempts that one rank may be ahead of another.
  static constexpr uint32_t kSlots = 64;
  struct alignas(64) Slot {
    std::atomic<uint32_t> attempt;         // that the slot serves now
    std::atomic<uint32_t> nodes_in;        // whose ranks are all in
    std::atomic<uint32_t> nodes_prepared;  // on the first node
    std::atomic<uint32_t> nodes_finished;
    std::atomic<uint32_t> over;        // 1: all have
    std::atomic<uint32_t> entered;     // ranks that have come to start()
    std::atomic<uint32_t> started;     // 1: all have
    std::atomic<uint32_t> arrived;     // at barriers, over all of them
    std::atomic<uint32_t> generation;  // barriers that are over
    std::atomic<uint32_t> decision;
    std::atomic<uint32_t> finished;
    int32_t code;
    int32_t rank;
    char reason[512];
  };

  // Between leaders.
  enum class Kind : uint32_t { kIn = 1, kPrepared, kCancelled, kCommitted, kFinished };
  struct Message {
    uint32_t attempt;
    Kind kind;
    int32_t code;
    int32_t rank;
    char reason[512];
  };

  Slot& slot_of(uint32_t attempt) const { return slots_[attempt % kSlots]; }
  Slot& slot() const { return slot_of(attempt_); }
  std::atomic<uint32_t>* newest_attempts() const {
    return reinterpret_cast<std::atomic<uint32_t>*>(slots_ + kSlots);
  }  // by rank
  Status claim();
  bool try_claim(uint32_t attempt, int* behind);
  void tell(int node, Kind kind, const Error* error = nullptr);
  void tell_others(Kind kind, const Error* error = nullptr);
  void post(int node, const Message& message);
  void hear(const Message& message);
  void apply(const Message& message);
  void node_is_in(Slot& s);
  void node_is_prepared(uint32_t attempt);
  void node_has_finished(Slot& s);
  Status settle();
  static bool cancel_slot(Slot& s, uint32_t from, int32_t code, int32_t rank,
                          std::string_view reason);
  // Waits until *word != seen. `can_end`: the attempt's decision, deadline and cancel flag end it too.
  Status wait_change(const std::atomic<uint32_t>* word, uint32_t seen, bool can_end);
  Status ended();

  Slot* slots_;
  comm::Group* group_;
  Limits limits_;
  uint32_t attempt_ = 0;
  std::mutex mutex_;
  std::vector<Message> early_;  // of attempts whose slot is not free yet
  bool overrun_ = false;        // there were too many of them
};

}  // namespace amxt::train
