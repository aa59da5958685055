#include "store/gradient_exchange.h"

#include <algorithm>
#include <utility>

namespace amxt::store {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t largest_part(const Layout& layout, int owner) {
  int64_t largest = 0;
  for (int64_t deal = 0; deal < layout.deals(); ++deal)
    largest = std::max(largest, layout.span_elements(owner, deal));
  return largest;
}

bool serves(const comm::Nodes& nodes, int rank, int owner) {
  const int node = nodes.node_of(rank);
  return nodes.node_of(owner) != node &&
         nodes.local_of(owner) % nodes.local_size(node) == nodes.local_of(rank);
}

}  // namespace

int64_t GradientExchange::bytes_needed(const Layout& layout, const comm::Nodes& nodes, int rank,
                                       DType wire_dtype) {
  if (nodes.count() == 1) return 0;
  const int64_t element = dtype_bytes(wire_dtype);
  int64_t bytes = nodes.count() * aligned(largest_part(layout, rank) * element);
  for (int owner = 0; owner < layout.owners(); ++owner) {
    if (serves(nodes, rank, owner)) bytes += aligned(largest_part(layout, owner) * element);
  }
  return 2 * bytes;
}

GradientExchange::GradientExchange(const Layout* layout, Traffic* traffic, DType dtype)
    : traffic_(traffic), dtype_(dtype) {
  owners_.push_back(traffic->rank());
  owners_.insert(owners_.end(), traffic->served().begin(), traffic->served().end());
  for (const int owner : owners_) {
    part_offset_.push_back(set_bytes_);
    set_bytes_ += aligned(largest_part(*layout, owner) * dtype_bytes(dtype));
  }
  const int64_t own = aligned(largest_part(*layout, traffic->rank()) * dtype_bytes(dtype));
  for (int node = 0; node < traffic->nodes().count(); ++node) {
    node_offset_.push_back(set_bytes_);
    if (node != traffic->node()) set_bytes_ += own;
  }
}

Result<std::unique_ptr<GradientExchange>> GradientExchange::create(const Layout* layout,
                                                                   Traffic* traffic,
                                                                   DType wire_dtype) {
  std::unique_ptr<GradientExchange> exchange(new GradientExchange(layout, traffic, wire_dtype));
  AMXT_ASSIGN(exchange->memory_,
              Buffer::allocate(2 * exchange->set_bytes_, "gradients between nodes"));
  return exchange;
}

std::byte* GradientExchange::part(size_t index) const {
  return memory_.data() + current_ * set_bytes_ + part_offset_[index];
}

std::byte* GradientExchange::received(int set, int node) const {
  return memory_.data() + set * set_bytes_ + node_offset_[static_cast<size_t>(node)];
}

Status GradientExchange::begin(Poll poll) {
  current_ = 1 - current_;
  return complete(current_, poll);
}

Status GradientExchange::send(std::span<const int64_t> to, std::span<const int64_t> from,
                              Combine combine) {
  Set& set = sets_[current_];
  const Tag tag{Stream::kGradients, sent_++};
  const int64_t element = dtype_bytes(dtype_);
  for (int node = 0; node < traffic_->nodes().count(); ++node) {
    const int64_t elements = from[static_cast<size_t>(node)];
    if (node == traffic_->node() || elements == 0) continue;
    AMXT_TRY(traffic_->receive(tag, traffic_->partner(node, traffic_->rank()),
                               received(current_, node), elements * element, &set.pending));
  }
  for (size_t i = 1; i < owners_.size(); ++i) {
    if (to[i] == 0) continue;
    AMXT_TRY(traffic_->send(tag, owners_[i], part(i), to[i] * element, &set.pending));
  }
  set.combine = std::move(combine);
  return {};
}

Status GradientExchange::complete(int index, Poll poll) {
  Set& set = sets_[index];
  if (!set.combine) return {};
  AMXT_TRY(traffic_->wait(Stream::kGradients, &set.pending, poll));
  std::vector<const std::byte*> parts;
  for (int node = 0; node < traffic_->nodes().count(); ++node) {
    parts.push_back(node == traffic_->node() ? memory_.data() + index * set_bytes_
                                             : received(index, node));
  }
  std::exchange(set.combine, nullptr)(parts);
  return {};
}

Status GradientExchange::finish(Poll poll) {
  AMXT_TRY(complete(1 - current_, poll));
  return complete(current_, poll);
}

void GradientExchange::restart() {
  for (Set& set : sets_) {
    set.pending.clear();
    set.combine = nullptr;
  }
  sent_ = 0;
}

}  // namespace amxt::store
