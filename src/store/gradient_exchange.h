// GradientExchange: a node's parts of gradient rows, brought to the ranks that own them and added up in the order of nodes.
//
// For each deal a rank computes the node's part of its own rows and of those of the owners on other nodes that it serves (Traffic): so
// the ranks of a node share the work on all rows evenly. Parts go out while the next deal is computed: there are two sets of buffers.
// All ranks go through the same deals in the same order; one thread calls.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/dtype.h"
#include "store/layout.h"
#include "store/traffic.h"

namespace amxt::store {

class GradientExchange {
 public:
  // Takes the parts of this rank's rows, by node, in order, when all have come.
  using Combine = std::function<void(std::span<const std::byte* const> parts)>;

  // Private bytes of the rank.
  static int64_t bytes_needed(const Layout& layout, const comm::Nodes& nodes, int rank,
                              DType wire_dtype);
  static Result<std::unique_ptr<GradientExchange>> create(const Layout* layout, Traffic* traffic,
                                                          DType wire_dtype);

  DType wire_dtype() const { return dtype_; }
  // This rank, then the owners that it serves.
  std::span<const int> owners() const { return owners_; }

  // Takes the other set of buffers: first ends what was sent from it.
  Status begin(Poll poll);
  // Where the part of owners()[index] goes.
  std::byte* part(size_t index) const;
  // Elements of each owner's part (that of this rank is not sent), and of the part that comes from each node.
  Status send(std::span<const int64_t> to, std::span<const int64_t> from, Combine combine);
  // Ends all that was sent.
  Status finish(Poll poll);
  // Forgets it, when the traffic was disconnected.
  void restart();

 private:
  struct Set {
    Traffic::Pending pending;
    Combine combine;
  };
  GradientExchange(const Layout* layout, Traffic* traffic, DType dtype);
  Status complete(int set, Poll poll);
  std::byte* received(int set, int node) const;

  Traffic* traffic_;
  DType dtype_;
  std::vector<int> owners_;
  std::vector<int64_t> part_offset_;  // bytes, by owner index; then by node of what comes in
  std::vector<int64_t> node_offset_;
  int64_t set_bytes_ = 0;
  Buffer memory_;
  Set sets_[2];
  int current_ = 1;
  uint64_t sent_ = 0;
};

}  // namespace amxt::store
