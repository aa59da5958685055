#include "store/traffic.h"

#include <utility>

namespace amxt::store {
namespace {

constexpr int64_t kLookNs = 100'000'000;

comm::Wire::Counters sum(const comm::Wire::Counters& a, const comm::Wire::Counters& b) {
  return {a.sent_bytes + b.sent_bytes, a.received_bytes + b.received_bytes, a.wait_ns + b.wait_ns};
}

}  // namespace

Status wait_for(comm::Wire& wire, comm::Wire::Transfer& transfer, Poll poll) {
  for (;;) {
    Status status = wire.wait(transfer, Deadline::after(kLookNs));
    if (status) return {};
    // A peer that left because the call has ended shows as a lost one: why it has ended comes first.
    AMXT_TRY(poll());
    if (status.error().code() != Code::kTimeout) return status;
  }
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

void Traffic::disconnect() {
  if (!wire_) return;
  past_ = counters();
  wire_.reset();
}

comm::Wire::Counters Traffic::counters() const {
  return wire_ ? sum(past_, wire_->counters()) : past_;
}

int Traffic::partner(int node, int rank) const {
  const std::vector<int>& there = nodes().on(node);
  return there[static_cast<size_t>(nodes().local_of(rank)) % there.size()];
}

Status Traffic::exchange_records(std::byte* base, std::span<const int64_t> offset,
                                 std::span<const int64_t> bytes, Poll poll) {
  const uint64_t tag = tag_of(Stream::kRecords, records_++);
  std::vector<comm::Wire::Pending> pending;
  const auto add = [&](Result<comm::Wire::Pending> posted) -> Status {
    if (!posted) return std::move(posted).error();
    pending.push_back(std::move(*posted));
    return {};
  };
  const auto at = [&](int rank) { return base + offset[static_cast<size_t>(rank)]; };
  const auto size = [&](int rank) { return bytes[static_cast<size_t>(rank)]; };
  for (const int from : served_) {
    if (size(from) > 0) AMXT_TRY(add(wire_->receive(from, tag, at(from), size(from))));
  }
  for (int there = 0; there < nodes().count() && size(rank()) > 0; ++there) {
    if (there == node()) continue;
    AMXT_TRY(add(wire_->send(partner(there, rank()), tag, at(rank()), size(rank()))));
  }
  for (const comm::Wire::Pending& transfer : pending) {
    AMXT_TRY(wait_for(*wire_, *transfer, poll));
  }
  return {};
}

}  // namespace amxt::store
