// Collectives of ranks on several nodes: over the node's shared memory first and last, over the wire between.
//
// The idea: lane l is the l-th rank of every node. Inside a node, lane l gets the node's share of what it carries (a slice of an
// all-reduce, the parts of the l-th ranks elsewhere); lanes then talk with their like on the other nodes directly, each pair once, so
// that a byte crosses between two nodes once, and the receiver sums in the order of nodes. With one rank a node the first and last part are
// empty and nothing is copied but by the wire.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "comm/group_collectives.h"

namespace amxt::comm {

class WireCollectives final : public GroupCollectives {
 public:
  // nodes: the ranks of each; `node` is this rank's.
  WireCollectives(std::shared_ptr<Communication> shared, Membership members,
                  std::unique_ptr<ShmArea> area, std::vector<std::vector<int>> nodes, int node);

  const char* transport() const override { return name_.c_str(); }

  Status all_reduce(const void* send, void* receive, int64_t count, DType dtype, ReduceOp op,
                    const Limits& limits) override;
  Status all_gather(const void* send, void* receive, std::span<const int64_t> counts, DType dtype,
                    const Limits& limits) override;
  Status reduce_scatter(const void* send, void* receive, std::span<const int64_t> counts,
                        DType dtype, ReduceOp op, const Limits& limits) override;
  Status broadcast(void* data, int64_t count, DType dtype, int root, const Limits& limits) override;
  Status all_to_all(const void* send, std::span<const int64_t> send_counts, void* receive,
                    std::span<const int64_t> receive_counts, DType dtype,
                    const Limits& limits) override;
  Status send(const void* data, int64_t count, DType dtype, int peer,
              const Limits& limits) override;
  Status receive(void* data, int64_t count, DType dtype, int peer, const Limits& limits) override;
  Status barrier(const Limits& limits) override;
  void give_up(Error why) override;
  Status exchange(const CollectiveCall& call, const void* own, void* all, int64_t bytes,
                  const Limits& limits) override;

 private:
  using Piece = ShmArea::Piece;
  // What is under way in a call: the memory stays until all of it has ended or the wire is closed.
  struct Job;

  // Runs a call; an error ends the communicator here, on the node and, by the loss of the wire, on the others.
  template <typename Body>
  Status guarded(const Limits& limits, Body&& body);
  // Passes when all ranks have entered the same call.
  Status enter(Job& job, const CollectiveCall& call);

  Status reduce_all(Job& job, const CollectiveCall& call, const void* send, void* receive,
                    int64_t count, DType dtype, ReduceOp op);
  Status reduce_slice(Job& job, const void* own, void* to, int64_t count, DType dtype, ReduceOp op);
  Status reduce_parts(Job& job, const CollectiveCall& call, const void* send, void* receive,
                      std::span<const int64_t> counts, DType dtype, ReduceOp op);
  // Receives what the lane's ranks on the other nodes send of a range, chunk by chunk, and reduces it with `own` in the order of
  // nodes; done(begin, end) is told of each chunk.
  Status reduce_range(Job& job, const void* own, void* to, int64_t count, DType dtype, ReduceOp op,
                      FunctionRef<Status(int64_t begin, int64_t end)> done);
  Status gather_parts(Job& job, const CollectiveCall& call, const void* send, void* receive,
                      std::span<const int64_t> counts, int64_t element_bytes);

  Status post_send(Job& job, int peer, uint32_t step, const void* data, int64_t bytes);
  Status post_receive(Job& job, int peer, uint32_t step, void* data, int64_t bytes);
  // Whole ranges, chunk i with step `first` + i.
  Status send_chunks(Job& job, int peer, uint32_t first, const void* data, int64_t bytes);
  Status receive_chunks(Job& job, int peer, uint32_t first, void* data, int64_t bytes);
  Status finish(Job& job);
  Status wait(Job& job, Wire::Transfer& transfer);
  // Of what that rank receives: by its own id of the communicator.
  uint64_t tag(int receiver, uint32_t step) const;
  uint64_t message_tag(int receiver, uint64_t ordinal) const;

  int local() const { return area_->member(); }
  int lanes(size_t node) const { return static_cast<int>(nodes_[node].size()); }
  bool is_own(size_t node) const { return static_cast<int>(node) == node_; }
  // The rank of that node which talks with lane `lane`.
  int partner(size_t node, int lane) const {
    return nodes_[node][static_cast<size_t>(lane % lanes(node))];
  }

  std::unique_ptr<ShmArea> area_;
  const std::vector<std::vector<int>> nodes_;
  const int node_;
  const std::string name_;
  uint64_t calls_ = 0;
  bool is_flat_ = true;                    // one rank on every node
  std::vector<std::byte> scratch_;         // of reduce_range()
  std::vector<uint64_t> sent_, received_;  // messages of send() and receive(), by peer
};

}  // namespace amxt::comm
