// Group: the processes of a job, as one of them sees it. Who am I, shared memory with the others of my node, a barrier, small
// exchanges, and word of a death within seconds.
//
// Thread-safety: share, barrier and exchange are called by one thread at a time, in the same order on all ranks; check, abort, the
// notes of calls and the accessors by any. Invariants: every blocking call has a deadline; once a peer is lost or anyone aborted, every call
// returns the same fatal error (kCommPeerLost, kCommAborted) naming the rank, its process and the reason; nothing is left behind in the
// file system.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/collective_call.h"
#include "comm/launch.h"
#include "comm/limits.h"
#include "comm/nodes.h"

namespace amxt::comm {

// Zero-filled memory that all ranks of the node map; a memfd, nothing in /dev/shm. Unmapped by the destructor.
class SharedMemory {
 public:
  SharedMemory() = default;
  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  friend class Group;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

class Wire;

class Group {
 public:
  // Alone (world 1): no sockets, no files.
  static Result<std::unique_ptr<Group>> create(const LaunchInfo& launch,
                                               const GroupOptions& options, Log* log,
                                               Deadline deadline);
  virtual ~Group() = default;

  virtual const LaunchInfo& launch() const = 0;
  int rank() const { return launch().rank; }
  int size() const { return launch().world_size; }
  // The same for all ranks; local_rank() and local_size() are by it, not by what the launcher said.
  virtual const Nodes& nodes() const = 0;
  int node() const { return nodes().node_of(rank()); }
  int node_count() const { return nodes().count(); }
  int local_rank() const { return nodes().local_of(rank()); }
  int local_size() const { return nodes().local_size(node()); }

  // Collective on the node. `what` names it in errors. Huge pages where the kernel gives them.
  virtual Result<SharedMemory> share(std::string_view what, int64_t bytes,
                                     const Limits& limits) = 0;

  // Returns when all ranks have arrived. All living ranks agree whether it was passed: where one gets an error, none gets success.
  // kCommTimeout at the deadline names those that have not arrived and is the end of the group on all ranks. A cancel ends the wait with
  // kCancelled: the others get kCommAborted, and this rank can only abort (a step that is cancelled agrees on it by train/'s verdict word
  // instead, so this is a last resort). All that is collective here ends alike.
  virtual Status barrier(const Limits& limits) = 0;

  // All ranks give a payload (at most 64 KiB, any length per rank); each gets everyone's, by rank. For agreements at start and save.
  virtual Result<std::vector<std::string>> exchange(std::string_view payload,
                                                    const Limits& limits) = 0;

  // Collective: a barrier before the ranks open their collectives, which no rank passes that has come for anything else.
  virtual Status meet_for_collectives(const Limits& limits) { return barrier(limits); }

  // Collective: connects all ranks for data between nodes, anew each time it is called (wire.h). kInvalidState on one node.
  virtual Result<std::unique_ptr<Wire>> make_wire(const Limits& limits) = 0;

  // Small messages between any two ranks beside the collectives, in order per pair; what the ranks of a step use to end it together. post()
  // never blocks: what a peer that is stuck or dying does not get is lost with it. The listener is called on the group's own thread and
  // must not block nor call the group, but post(); messages that come while there is none are dropped. set_listener(nullptr) returns when
  // no call of the former is under way.
  static constexpr size_t kMaxPost = 1024;
  using Listener = std::function<void(int from, std::string_view message)>;
  virtual void set_listener(Listener listener) = 0;
  virtual void post(int rank, std::string_view message) = 0;

  // Notes a call that all ranks of a communicator must make alike, in the order of the program, and its end. Where ranks call different
  // things under one number the group ends on all of them with kCommProtocol, naming both; collectives among themselves are left to
  // compare themselves. Communicator 0 is of all ranks; others are noted from open_calls() to close_calls().
  virtual Result<uint64_t> begin_call(uint64_t communicator, const CollectiveCall& call,
                                      bool is_collective) {
    (void)communicator, (void)call, (void)is_collective;
    return uint64_t{0};
  }
  virtual void end_call(uint64_t communicator, uint64_t number) {
    (void)communicator, (void)number;
  }
  // The same of a send or receive, which two ranks make: the group ends where one waits for what the other cannot begin any more. `peer`
  // is a rank of the communicator.
  virtual Result<uint64_t> begin_letter(uint64_t communicator, const CollectiveCall& call, int peer,
                                        bool sends, bool blocks) {
    (void)communicator, (void)call, (void)peer, (void)sends, (void)blocks;
    return uint64_t{0};
  }
  virtual void end_letter(uint64_t communicator, uint64_t number) {
    (void)communicator, (void)number;
  }
  // `ranks`: the members, by their ranks in the group, in the order of their ranks in the communicator.
  virtual void open_calls(uint64_t communicator, std::vector<int> ranks) {
    (void)communicator, (void)ranks;
  }
  virtual void close_calls(uint64_t communicator) { (void)communicator; }

  // Tells all ranks why this one has ended `what`, a thing of theirs beside the group; before they see that it has. The first word on a
  // thing is kept.
  virtual void tell_end(uint64_t what, const Error& why) { (void)what, (void)why; }
  virtual std::optional<Error> end_of(uint64_t what) const {
    (void)what;
    return std::nullopt;
  }

  // The fatal error, if there is one.
  virtual Status check() const = 0;
  // Tells all ranks that this one gives up, and why; they get kCommAborted with the reason. Returns at once.
  virtual void abort(std::string_view reason) = 0;
  // Orderly leave: waits until all ranks have called it.
  virtual Status finalize(const Limits& limits) = 0;
  // True when threads of all local ranks exceed the CPUs: nobody spins.
  virtual bool oversubscribed() const = 0;

 protected:
  static SharedMemory adopt(std::byte* data, int64_t bytes);
};

}  // namespace amxt::comm
