// ControlChannel: the links to all other ranks of the job and the thread that listens to them.
//
// Thread-safe. Invariants: the first fatal error wins and is told to all peers at once, as it is, so that every rank reports the same root
// cause; a peer's end of file, the end of its process or, from another node, its silence is one, unless it has said that it leaves. Links
// to other nodes carry a heartbeat both ways. Sending never blocks. Destroyed without leave() and without an error, it tells the peers
// that this rank left; what is queued goes out before.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/assembly.h"
#include "comm/limits.h"

namespace amxt::comm {

class ControlChannel {
 public:
  // What a node's leader announced about a shared memory.
  struct Segment {
    Descriptor file;
    int64_t bytes = 0;
    Code code = Code::kOk;  // else the leader could not make it
    std::string text;       // its error, or the name of the memory
  };

  // Whom it serves. All but last_word() and changed() are called on the channel's thread alone.
  class Owner {
   public:
    virtual ~Owner() = default;
    // After an error or a leave: wakes whoever waits elsewhere.
    virtual void changed() = 0;
    // A message that is not the channel's own.
    virtual void heard(int rank, const Message& message) = 0;
    // Now and then: for how long it need not be asked again; -1: until kick().
    virtual int64_t look() = 0;
    // On rank 0, when the group ends: how many collectives of the job have opened; none does any more.
    virtual uint64_t last_word() = 0;
  };

  ControlChannel(int rank, std::vector<Member> members, int64_t peer_timeout_ns, Log* log,
                 Owner* owner);
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;
  // Begins to listen; once.
  Status start();

  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Status check() const;
  void fail(Error error);
  // Fails; the error of the group, which is this one if there was none before.
  Error fail_with(Error error);
  // Once the group has failed, and rank 0 has said so: how many collectives of the job had opened by then.
  std::optional<uint64_t> last_opened() const;
  bool left(int rank) const {
    return left_[static_cast<size_t>(rank)].load(std::memory_order_acquire);
  }
  // The connection is at its end.
  bool is_lost(int rank) const {
    return lost_[static_cast<size_t>(rank)].load(std::memory_order_acquire);
  }
  void leave();

  void send(int rank, const Message& message, int passed = -1);
  void send_to_all(const Message& message);
  // Lets the channel's thread look() soon.
  void kick() const;

  // kTimeout at the deadline, kCancelled; the fatal error when there is one.
  Result<Segment> wait_for_segment(uint64_t sequence, const Limits& limits);

  const Identity& identity(int rank) const { return members_[static_cast<size_t>(rank)].identity; }
  int size() const { return static_cast<int>(members_.size()); }

 private:
  void listen();
  void hear(Member& member, bool process_ended);
  void handle(const Member& member, const Message& message, Descriptor passed);
  void lost(const Member& member);
  void unreadable(const Member& member);
  Error silence_of(const Member& member) const;
  void beat();
  bool is_live(const Member& member) const;
  bool all_delivered() const;

  const int rank_;
  std::vector<Member> members_;
  const int64_t peer_timeout_ns_;
  Log* const log_;
  Owner* const owner_;
  bool has_streams_ = false;
  int64_t started_ns_ = 0, next_beat_ns_ = 0;  // of the listening thread
  std::vector<std::atomic<bool>> left_, lost_;
  Descriptor wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::atomic<int64_t> last_opened_{-1};
  bool leaving_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Error> error_;
  std::map<uint64_t, Segment> segments_;
  std::thread thread_;
};

}  // namespace amxt::comm
