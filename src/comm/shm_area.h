// ShmArea: collectives among the ranks of one node over shared memory, the part that moves the bytes.
//
// The idea: each member copies its data into slots of its own, a round at a time, in pieces that stay in the caches, and says so by a
// counter; the others reduce or copy from there. Each waits for all others round by round, so that nobody runs far ahead and four slots are
// enough. Whoever waits spins for at most 50 us, where the cores suffice, then sleeps on a futex.
//
// Thread-safety: one call at a time, in the same order on all members; send and receive count per pair. Invariants: nobody passes the first
// round of a call before all have entered it and said the same about it; a call of all members is passed by all or by none, as one word in
// shared memory decides; no lock lies there, so that a member may die anywhere; after an error the area is broken for all members, with the
// reason of the first that failed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/function_ref.h"
#include "base/result.h"
#include "comm/collective_call.h"
#include "comm/collectives.h"
#include "comm/group.h"

namespace amxt::comm {

// The shared memory of all communicators of one group on this node, one area each.
class ShmPool {
 public:
  // Collective on the node.
  static Result<std::shared_ptr<ShmPool>> create(Group& group, const Limits& limits);

  Group& group() const { return group_; }
  // An area that nobody uses, by one member for all of them. kLimit when all are in use.
  Result<int> take();
  void give_back(int area);

  std::byte* area(int index) const;
  int64_t area_bytes() const { return area_bytes_; }

 private:
  struct Head;
  explicit ShmPool(Group& group) : group_(group) {}
  Head* head() const { return reinterpret_cast<Head*>(memory_.data()); }

  Group& group_;
  SharedMemory memory_;
  int64_t area_bytes_ = 0;
  int areas_ = 0;
};

// The error of a rank that ends a communicator, as the other ranks get it.
Error as_told(const Error& error, int rank);

class ShmArea {
 public:
  // A range of an array, in elements.
  struct Piece {
    int64_t offset = 0, count = 0;
  };
  using Limits = Collectives::Limits;

  // `ranks`: how members are called in messages, in the order of members. The area is one that take() gave, and is given back by the last
  // member. `alive` is asked now and then by whoever waits.
  ShmArea(std::shared_ptr<ShmPool> pool, int area, std::vector<int> ranks, int member,
          std::function<Status()> alive);
  ~ShmArea();
  ShmArea(const ShmArea&) = delete;
  ShmArea& operator=(const ShmArea&) = delete;

  // Of an area for that many members.
  static int64_t bytes_for(int size);

  int member() const { return member_; }
  int size() const { return size_; }

  // Member m gets the reduction of everyone's pieces[m] of `send`; `out` holds its own only. Pieces are the same on all.
  Status reduce(const CollectiveCall& call, const void* send, std::span<const Piece> pieces,
                DType dtype, ReduceOp op, int64_t divisor, void* out, const Limits& limits);
  Status all_reduce(const CollectiveCall& call, const void* send, void* receive, int64_t count,
                    DType dtype, ReduceOp op, int64_t divisor, const Limits& limits);
  // Member m's `own`, pieces[m].count elements, ends at pieces[m].offset of everyone's `receive`.
  Status gather(const CollectiveCall& call, const void* own, void* receive,
                std::span<const Piece> pieces, int64_t element_bytes, const Limits& limits);
  Status broadcast(const CollectiveCall& call, void* data, int64_t bytes, int root,
                   const Limits& limits);
  // to[m] of `send` goes to member m, from[m] of `receive` comes from it.
  Status all_to_all(const CollectiveCall& call, const void* send, std::span<const Piece> to,
                    void* receive, std::span<const Piece> from, int64_t element_bytes,
                    const Limits& limits);
  Status barrier(const CollectiveCall& call, const Limits& limits);
  Status send(const CollectiveCall& call, const void* data, int64_t bytes, int peer,
              const Limits& limits);
  Status receive(const CollectiveCall& call, void* data, int64_t bytes, int peer,
                 const Limits& limits);

  // Breaks the area: all members get an error with this reason. Returns the error that won.
  Error fail(Error error);
  Status usable();

 private:
  struct Head;
  struct Member;
  struct Channel;
  struct Wire;  // of a call, as it lies in shared memory
  using Step = FunctionRef<void(int64_t round)>;

  static int64_t rings_offset_for(int size);
  static int64_t slots_offset_for(int size);

  Head& head() const;
  Member& at(int member) const;
  Channel& channel(int from, int to) const;
  std::byte* ring(int from, int to) const;
  std::byte* slot(int member, uint64_t round) const;
  std::string name(int member) const;

  Status run(const CollectiveCall& call, int64_t rounds, Step copy_in, Step finish,
             const Step* copy_out, const Limits& limits);
  Status compare(uint64_t call_number);
  Status wait_all(std::atomic<uint64_t> Member::* counter, uint64_t target,
                  const CollectiveCall& call, const Limits& limits);
  Status wait(FunctionRef<bool()> ready, FunctionRef<std::string()> missing,
              const CollectiveCall& call, const Limits& limits);
  void advance(std::atomic<uint64_t>& counter, uint64_t to);
  void wake();
  Status pass(uint64_t number);
  bool has_passed(uint64_t gate) const;
  std::optional<Error> give_up(Error error);
  Error explain(Error error);
  Error broken() const;
  Error die(Error error);

  const std::shared_ptr<ShmPool> pool_;
  const int area_;
  std::byte* const base_;
  const std::vector<int> ranks_;
  const int member_, size_;
  const std::function<Status()> alive_;
  int64_t slot_bytes_ = 0, ring_bytes_ = 0, slots_offset_ = 0, rings_offset_ = 0;
  bool spins_ = false;
  uint64_t rounds_ = 0, calls_ = 0;
  uint64_t current_ = UINT64_MAX;  // the call under way that all make
  std::mutex mutex_;               // of error_
  std::unique_ptr<Error> error_;
};

}  // namespace amxt::comm
