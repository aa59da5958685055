#include "store/traffic.h"

#include <utility>

namespace amxt::store {
namespace {

constexpr int64_t kLookNs = 100'000'000;

size_t index(Stream stream) { return static_cast<size_t>(stream); }

uint64_t wire_tag(Tag tag) { return static_cast<uint64_t>(tag.stream) << 56 | tag.number; }

}  // namespace

const char* stream_name(Stream stream) {
  switch (stream) {
    case Stream::kWeights:
      return "all_gather_weights";
    case Stream::kEmbedding:
      return "all_to_all_embedding";
    case Stream::kGradients:
      return "reduce_scatter_gradients";
    case Stream::kRecords:
      return "all_gather_records";
  }
  return "";
}

Traffic::Traffic(comm::Group* group) : group_(group) {
  const comm::Nodes& all = nodes();
  for (int rank = 0; rank < group_->size(); ++rank) {
    if (all.node_of(rank) != node() && partner(node(), rank) == this->rank())
      served_.push_back(rank);
  }
}

Status Traffic::connect(Deadline deadline) {
  disconnect();
  AMXT_ASSIGN(wire_, group_->make_wire(deadline));
  records_ = 0;
  return {};
}

void Traffic::disconnect() { wire_.reset(); }

Status Traffic::send(Tag tag, int rank, const void* data, int64_t bytes, Pending* pending) {
  AMXT_ASSIGN(comm::Wire::Pending posted, wire_->send(rank, wire_tag(tag), data, bytes));
  pending->push_back(std::move(posted));
  sent_bytes_[index(tag.stream)].fetch_add(bytes, std::memory_order_relaxed);
  return {};
}

Status Traffic::receive(Tag tag, int rank, void* data, int64_t bytes, Pending* pending) {
  AMXT_ASSIGN(comm::Wire::Pending posted, wire_->receive(rank, wire_tag(tag), data, bytes));
  pending->push_back(std::move(posted));
  return {};
}

Status Traffic::wait(Stream stream, Pending* pending, Poll poll) {
  const int64_t began = monotonic_ns();
  for (const comm::Wire::Pending& transfer : *pending) {
    for (Status ended = Error(Code::kTimeout, ""); !ended;) {
      ended = wire_->wait(*transfer, Deadline::after(kLookNs));
      if (ended) break;
      // A peer that left because the call has ended shows as a lost one: why it has ended comes first.
      AMXT_TRY(poll());
      if (ended.error().code() != Code::kTimeout) return ended;
    }
  }
  pending->clear();
  count_wait(stream, monotonic_ns() - began);
  return {};
}

void Traffic::count_wait(Stream stream, int64_t ns) {
  wait_ns_[index(stream)].fetch_add(ns, std::memory_order_relaxed);
}

Traffic::Uses Traffic::uses() const {
  Uses uses;
  for (size_t i = 0; i < uses.size(); ++i) {
    uses[i] = {sent_bytes_[i].load(std::memory_order_relaxed),
               wait_ns_[i].load(std::memory_order_relaxed)};
  }
  return uses;
}

int Traffic::partner(int node, int rank) const {
  const std::vector<int>& there = nodes().on(node);
  return there[static_cast<size_t>(nodes().local_of(rank)) % there.size()];
}

Status Traffic::exchange_records(std::byte* base, std::span<const int64_t> offset,
                                 std::span<const int64_t> bytes, Poll poll) {
  const Tag tag{Stream::kRecords, records_++};
  Pending pending;
  const auto at = [&](int rank) { return base + offset[static_cast<size_t>(rank)]; };
  const auto size = [&](int rank) { return bytes[static_cast<size_t>(rank)]; };
  for (const int from : served_) {
    if (size(from) > 0) AMXT_TRY(receive(tag, from, at(from), size(from), &pending));
  }
  for (int there = 0; there < nodes().count() && size(rank()) > 0; ++there) {
    if (there == node()) continue;
    AMXT_TRY(send(tag, partner(there, rank()), at(rank()), size(rank()), &pending));
  }
  return wait(Stream::kRecords, &pending, poll);
}

}  // namespace amxt::store
