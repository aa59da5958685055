// Collectives: reductions and exchanges of arrays over the ranks of a communicator. One interface, whatever carries the bytes: shared
// memory, a wire between nodes, both (hierarchical), or NCCL on device memory.
//
// Thread-safety: one call at a time per communicator, in the same order on all its ranks; several communicators of one process may be used
// at the same time by different threads. Invariants: all ranks of a call get the same bits, in an order of sums that depends only on
// ranks, counts and transport, never on who arrives first; bf16 and fp16 are summed in fp32 and rounded once, but for bf16 over a
// hierarchical transport (once per level) and for NCCL, which has its own way; a mismatch between ranks (operation, count, type, root,
// order) ends in kCommProtocol on all of them, naming both sides; every call has a deadline, after which the communicator is dead on all
// ranks, as after a cancel.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/dtype.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/collective_call.h"
#include "comm/limits.h"
#include "kernels/reduce.h"

namespace amxt::comm {

class Group;
using kernels::ReduceOp;

// fp32, bf16, fp16, int32, int64, uint8.
inline bool is_collective_dtype(DType dtype) { return kernels::is_reducible(dtype); }
const char* reduce_op_name(ReduceOp op);  // "sum"

class Collectives {
 public:
  using Limits = comm::Limits;
  // What one kind of call has done so far.
  struct Counter {
    std::string name;                      // "all_reduce"
    int64_t calls = 0, bytes = 0, ns = 0;  // bytes of this rank's larger buffer
  };

  virtual ~Collectives() = default;
  virtual const char* transport() const = 0;  // "shm", "gloo", "shm+gloo", "nccl", "none"
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Of this communicator alone among those of its group; 0: the first, of all ranks. Under it its calls are noted (Group::begin_call()).
  virtual uint64_t number() const { return 0; }

  // Counts are in elements. `send` and `receive` are the same buffer (in place) or do not overlap.
  virtual Status all_reduce(const void* send, void* receive, int64_t count, DType dtype,
                            ReduceOp op, const Limits& limits) = 0;
  // counts[r]: what rank r gives; all parts lie in `receive` in the order of ranks. In place: `send` is this rank's part of `receive`.
  virtual Status all_gather(const void* send, void* receive, std::span<const int64_t> counts,
                            DType dtype, const Limits& limits) = 0;
  // counts[r]: what rank r gets; `send` holds all parts in the order of ranks. In place: `receive` is this rank's part of `send`.
  virtual Status reduce_scatter(const void* send, void* receive, std::span<const int64_t> counts,
                                DType dtype, ReduceOp op, const Limits& limits) = 0;
  virtual Status broadcast(void* data, int64_t count, DType dtype, int root,
                           const Limits& limits) = 0;
  // send_counts[r] elements go to rank r, receive_counts[r] come from it; parts lie in the order of ranks. Never in place.
  virtual Status all_to_all(const void* send, std::span<const int64_t> send_counts, void* receive,
                            std::span<const int64_t> receive_counts, DType dtype,
                            const Limits& limits) = 0;
  // The n-th send of one rank to another meets the n-th receive there from it. A send may return before it was received.
  virtual Status send(const void* data, int64_t count, DType dtype, int peer,
                      const Limits& limits) = 0;
  virtual Status receive(void* data, int64_t count, DType dtype, int peer,
                         const Limits& limits) = 0;
  virtual Status barrier(const Limits& limits) = 0;
  // Ends the communicator on all ranks for this reason, in place of a call that they make.
  virtual void give_up(Error why) = 0;
  // For what is built upon a communicator: everyone's `bytes` bytes by rank, agreed upon and told of as the call that it is for; not
  // counted.
  virtual Status exchange(const CollectiveCall& call, const void* own, void* all, int64_t bytes,
                          const Limits& limits) = 0;

  // Collective: a communicator of the ranks that give the same colour, in the order of keys, then of ranks. A negative colour belongs to
  // none: nullptr. It may be used beside this one, and outlive it.
  virtual Result<std::unique_ptr<Collectives>> split(int color, int key, const Limits& limits) = 0;

  virtual std::vector<Counter> counters() const { return {}; }
};

struct CollectiveOptions {
  // Where the transport is not the one that the nodes ask for: for tests and benchmarks.
  enum class Transport { kByNodes, kWire } transport = Transport::kByNodes;
};

// Collective on all ranks of the group, which must outlive it: "none" alone, "shm" on one node, "gloo" on nodes of one rank each, else
// "shm+gloo". Checks arguments, counts, and tells each call at level debug. `log` may be null. An error is the end of the group.
Result<std::unique_ptr<Collectives>> make_collectives(Group& group,
                                                      const CollectiveOptions& options, Log* log,
                                                      const Limits& limits);

// The same around another transport.
std::unique_ptr<Collectives> watch_collectives(std::unique_ptr<Collectives> inner, Log* log);

}  // namespace amxt::comm
