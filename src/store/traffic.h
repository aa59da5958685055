// Traffic: the wire between the nodes of a job, and who talks to whom over it.
//
// For each rank there is one partner on every other node: the rank of the same number there, counted round. What a node needs of a rank
// elsewhere, its partner fetches for all of the node; what the node has for it, the partner brings. So bytes pass the wire once per node,
// and each local rank carries its part.
//
// Not thread-safe, but that transfers may be posted and waited for by any thread. Every rank makes the same calls in the same order.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/deadline.h"
#include "base/function_ref.h"
#include "base/result.h"
#include "comm/group.h"
#include "comm/wire.h"

namespace amxt::store {

// Looks whether to go on waiting.
using Poll = FunctionRef<Status()>;

// What passes the wire.
enum class Stream : uint8_t { kWeights, kEmbedding, kGradients, kRecords };
constexpr int kStreams = 4;
const char* stream_name(Stream stream);  // the collective that it is: "all_gather_weights"

// Of a transfer: numbers of one stream are its own.
struct Tag {
  Stream stream;
  uint64_t number;
};

class Traffic {
 public:
  using Pending = std::vector<comm::Wire::Pending>;
  struct Use {
    int64_t sent_bytes = 0;
    int64_t wait_ns = 0;  // that computing waited
  };

  explicit Traffic(comm::Group* group);

  // Collective over all ranks: a new wire. What was counted stays.
  Status connect(Deadline deadline);
  // Gives up what is under way; the other ranks must do so too.
  void disconnect();
  bool is_connected() const { return wire_ != nullptr; }
  comm::Wire& wire() { return *wire_; }

  // Posts a transfer and adds it to `pending`.
  Status send(Tag tag, int rank, const void* data, int64_t bytes, Pending* pending);
  Status receive(Tag tag, int rank, void* data, int64_t bytes, Pending* pending);
  // Ends them all, with the deadline of nobody but `poll`, which is asked at least every 100 ms. Counts the time.
  Status wait(Stream stream, Pending* pending, Poll poll);
  void count_wait(Stream stream, int64_t ns);
  using Uses = std::array<Use, kStreams>;  // by stream
  // Since this was made.
  Uses uses() const;

  const comm::Nodes& nodes() const { return group_->nodes(); }
  int rank() const { return group_->rank(); }
  int node() const { return group_->node(); }
  // The rank on `node` that deals with `rank`, which is on another.
  int partner(int node, int rank) const;
  // Ranks of other nodes whose partner here is this rank, ascending.
  std::span<const int> served() const { return served_; }

  // Every rank has a record of bytes[rank] bytes, at offset[rank] of memory that is shared by a node; each node gets those of the others.
  // The caller's barrier tells the ranks of a node when all have come.
  Status exchange_records(std::byte* base, std::span<const int64_t> offset,
                          std::span<const int64_t> bytes, Poll poll);

 private:
  comm::Group* group_;
  std::vector<int> served_;
  std::unique_ptr<comm::Wire> wire_;
  uint64_t records_ = 0;
  std::array<std::atomic<int64_t>, kStreams> sent_bytes_{}, wait_ns_{};
};

}  // namespace amxt::store
