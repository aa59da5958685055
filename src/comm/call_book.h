// CallBook: the calls that all ranks must make alike, numbered as this rank's program makes them, and what others say of theirs.
//
// The idea: ranks that call different things under one number wait for each other for ever, each in its own place. So a call that takes its
// time is told to all ranks, and whoever made another one under this number knows. That a rank called it stays true whatever becomes of it:
// nothing that is told grows stale. Collectives compare themselves with each other when they meet (shm_area.h), and faster.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/collective_call.h"

namespace amxt::comm {

class CallBook {
 public:
  // As ranks tell each other.
  struct Told {
    int rank = -1;
    uint64_t number = 0;
    bool is_collective = false;  // compares itself with other collectives
    std::string text;
  };

  explicit CallBook(int rank) : rank_(rank) {}

  struct Begun {
    uint64_t number = 0;
    bool was_idle = false;          // nobody looked at late() since all calls had ended
    std::optional<Error> mismatch;  // another rank told of another call under this number
  };
  Begun begin(const CollectiveCall& call, bool is_collective, int64_t now_ns);
  void end(uint64_t number);

  // Calls under way since `since_ns` or before that were not told yet; the oldest first, a few at a time.
  std::vector<Told> late(int64_t since_ns);
  // No call is under way: until the next begin(), which says so, late() needs no look.
  bool rests();
  size_t under_way() const;
  // The call under way, when it is the only one; for messages.
  std::optional<Told> only() const;

  // What another rank called; the mismatch if this one called something else.
  std::optional<Error> hear(const Told& told);
  // On rank 0, which passes it on: nobody has told the same before.
  bool is_news(const Told& told);

 private:
  struct Entry {
    uint64_t number = 0;
    CollectiveCall call;
    bool is_collective = false, ended = false, told = false;
    int64_t begun_ns = 0;
  };
  Told as_told(const Entry& entry) const;
  std::optional<Error> compare(const Entry& own, const Told& other) const;

  const int rank_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // of numbers without a gap
  std::deque<Told> heard_, news_;
  uint64_t next_ = 1, last_heard_ = 0;
  size_t under_way_ = 0;
  bool rests_ = true;
};

}  // namespace amxt::comm
