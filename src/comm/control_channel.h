// ControlChannel: the sockets to all other ranks of the machine and the thread that listens to them.
//
// Thread-safe. Invariants: the first fatal error wins and is told to all peers at once, as it is, so that every rank reports the same root
// cause; a peer's end of file or the end of its process is one, unless it has said that it leaves. Destroyed without leave() and
// without an error, it tells the peers that this rank left.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
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
#include "comm/rendezvous.h"

namespace amxt::comm {

class ControlChannel {
 public:
  // What rank 0 announced about a shared memory.
  struct Segment {
    Descriptor file;
    int64_t bytes = 0;
    Code code = Code::kOk;  // else rank 0 could not make it
    std::string text;       // its error, or the name of the memory
  };

  // `on_change` is called, on any thread, after an error or a leave: wakes whoever waits elsewhere.
  static Result<std::unique_ptr<ControlChannel>> start(int rank, std::vector<Member> members,
                                                       Log* log, std::function<void()> on_change);
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Status check() const;
  void fail(Error error);
  // Fails; the error of the group, which is this one if there was none before.
  Error fail_with(Error error);
  bool left(int rank) const {
    return left_[static_cast<size_t>(rank)].load(std::memory_order_acquire);
  }
  void leave();

  void send_segment(uint64_t sequence, const Segment& segment);
  // kTimeout at the deadline; the fatal error when there is one.
  Result<Segment> wait_for_segment(uint64_t sequence, Deadline deadline);

  const Identity& identity(int rank) const { return members_[static_cast<size_t>(rank)].identity; }
  int size() const { return static_cast<int>(members_.size()); }

 private:
  ControlChannel(int rank, std::vector<Member> members, Log* log, std::function<void()> on_change);
  void listen();
  void hear(Member& member, bool process_ended);
  void handle(const Member& member, const Message& message, Descriptor passed);
  void lost(const Member& member);
  void broadcast(const Message& message, int passed = -1);

  const int rank_;
  std::vector<Member> members_;
  std::vector<bool> silent_;  // sockets at their end; the listening thread's
  Log* const log_;
  const std::function<void()> on_change_;
  std::vector<std::atomic<bool>> left_;
  Descriptor stop_;
  std::atomic<bool> failed_{false};
  bool leaving_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Error> error_;
  std::map<uint64_t, Segment> segments_;
  std::thread thread_;
};

}  // namespace amxt::comm
