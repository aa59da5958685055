// CallBook: the calls that all ranks of a communicator must make alike, numbered as this rank's program makes them, and what others say of
// theirs. CallBooks: those of all communicators that this rank is in.
//
// The idea: ranks that call different things under one number wait for each other for ever, each in its own place. So a call that takes its
// time is told to all ranks, and whoever made another one under this number knows. That a rank called it stays true whatever becomes of it:
// nothing that is told grows stale. Collectives compare themselves with each other when they meet (shm_area.h), and faster.
//
// A send or receive has no number, for two ranks make it alone: it stands before the number of the next call. Who waits in one is told too,
// and where the rank that it waits for has come to a call that it cannot leave before, and has not begun the other end, neither ever ends.
//
// Ranks are those of the group. Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
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
    // Of a send or receive, the ordinal-th of its rank with that peer.
    int peer = -1;
    uint64_t ordinal = 0;
    bool sends = false, blocks = false;
    bool over = false;  // it was told before
    uint64_t communicator = 0;
  };
  // A send or receive, with a rank of the communicator; `blocks`: its thread waits for it.
  struct Letter {
    CollectiveCall call;
    int peer = -1;
    bool sends = false, blocks = false;
  };

  // `ranks`: the members, in the order of the communicator's ranks; none: all ranks of the group.
  explicit CallBook(int rank, uint64_t communicator = 0, std::vector<int> ranks = {})
      : rank_(rank), communicator_(communicator), ranks_(std::move(ranks)) {}

  struct Begun {
    uint64_t number = 0;
    bool was_idle = false;          // nobody looked at late() since all calls had ended
    std::optional<Error> mismatch;  // another rank told of another call under this number
  };
  Begun begin(const CollectiveCall& call, bool is_collective, int64_t now_ns);
  void end(uint64_t number);
  Begun begin(const Letter& letter);  // the number is its own
  // What is to be told of its end.
  std::optional<Told> end_letter(uint64_t number);

  // Calls under way since `since_ns` or before that were not told yet; the oldest first, a few at a time.
  std::vector<Told> late(int64_t since_ns);
  // Sends and receives that wait, and have nothing before them, since `receive_since_ns` and `send_since_ns`. A send may end without its
  // receive, so that it is given more time.
  std::vector<Told> late_letters(int64_t now_ns, int64_t receive_ns, int64_t send_ns);
  // What this rank waits in since `since_ns` while another waits for a send or receive of it that cannot come.
  std::optional<Error> deadlock(int64_t since_ns) const;
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
  struct Waiting {
    Letter letter;
    uint64_t number = 0, position = 0, ordinal = 0;
    bool told = false;
    int64_t first_ns = 0;  // nothing was before it any more; 0: not yet
  };
  Told as_told(const Entry& entry) const;
  Told as_told(const Waiting& waiting) const;
  std::optional<Error> compare(const Entry& own, const Told& other) const;
  std::string disagreement() const;

  const int rank_;
  const uint64_t communicator_;
  const std::vector<int> ranks_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // of numbers without a gap
  std::deque<Told> heard_, news_;
  std::deque<Waiting> letters_;                     // under way, in the order of the program
  std::deque<Told> awaited_;                        // what others wait for of this rank
  std::map<std::pair<int, bool>, uint64_t> begun_;  // letters by peer, and whether they are sends
  uint64_t next_letter_ = 1;
  uint64_t next_ = 1, last_heard_ = 0;
  size_t under_way_ = 0;
  bool rests_ = true;
};

class CallBooks {
 public:
  explicit CallBooks(int rank) : rank_(rank), first_(std::make_shared<CallBook>(rank)) {}

  // Of communicator 0, of all ranks.
  CallBook& first() const { return *first_; }
  // Null when it is not open.
  std::shared_ptr<CallBook> find(uint64_t communicator) const;
  std::vector<std::shared_ptr<CallBook>> all() const;

  void open(uint64_t communicator, std::vector<int> ranks);
  void close(uint64_t communicator);
  // What is told of a communicator that this rank may be about to open is kept for a while.
  std::optional<Error> hear(const CallBook::Told& told);

 private:
  const int rank_;
  const std::shared_ptr<CallBook> first_;
  mutable std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<CallBook>> parts_;
  std::deque<CallBook::Told> early_;
};

}  // namespace amxt::comm
