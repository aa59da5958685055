#include "comm/control_segment.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/futex.h"
#include "comm/memory_file.h"

namespace amxt::comm {
namespace {

constexpr uint32_t kBroken = 0x80000000;

uint32_t gate_of(uint64_t number) { return static_cast<uint32_t>(number) & ~kBroken; }

}  // namespace

// Both are all zero at the beginning, which is what a new memfd holds.
struct alignas(64) ControlSegment::Slot {
  std::atomic<uint64_t> number;  // of the last collective that the rank arrived at
  std::atomic<uint32_t> collective;
  std::atomic<uint32_t> cancelled;
};

struct ControlSegment::Layout {
  alignas(64) std::atomic<uint64_t> arrivals;  // of all ranks, at all collectives
  // Low 31 bits of the number of the last collective that was opened; kBroken: the next one is broken off.
  alignas(64) std::atomic<uint32_t> gate;
  Slot slots[comm::kMaxLocalRanks];
  std::atomic<uint32_t> payload_bytes[2]
                                     [comm::kMaxRanks];  // by the collective's number, odd or even
};

const char* collective_name(Collective collective) {
  switch (collective) {
    case Collective::kBarrier:
      return "barrier";
    case Collective::kExchange:
      return "exchange";
    case Collective::kShare:
      return "share";
    case Collective::kFinalize:
      return "finalize";
    case Collective::kCollectives:
      return "the opening of collectives";
  }
  return "unknown collective";
}

const char* a_collective(Collective collective) {
  switch (collective) {
    case Collective::kBarrier:
      return "a barrier";
    case Collective::kExchange:
      return "an exchange";
    case Collective::kShare:
      return "a share";
    case Collective::kFinalize:
      return "a finalize";
    case Collective::kCollectives:
      return "the opening of collectives";
  }
  return "an unknown collective";
}

Error payload_error(size_t bytes) {
  return Error(Code::kLimit, fmt::format("exchange: a payload of {} bytes, the limit is {}", bytes,
                                         ControlSegment::kMaxPayload));
}

int64_t ControlSegment::bytes_for(int world_size) {
  return static_cast<int64_t>(sizeof(Layout) + 2 * kMaxPayload * static_cast<size_t>(world_size));
}

size_t ControlSegment::max_payloads(int world_size) {
  return static_cast<size_t>(world_size) * (kMaxPayload + sizeof(uint32_t));
}

Result<ControlSegment> ControlSegment::map(const Descriptor& file, std::vector<int> ranks, int rank,
                                           int world_size) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free &&
                std::atomic<uint32_t>::is_always_lock_free);
  AMXT_ASSIGN(std::byte* const data, map_memory_file(file, bytes_for(world_size)));
  return ControlSegment(data, std::move(ranks), rank, world_size);
}

ControlSegment::ControlSegment(std::byte* data, std::vector<int> ranks, int rank, int world_size)
    : layout_(reinterpret_cast<Layout*>(data)),
      ranks_(std::move(ranks)),
      rank_(rank),
      world_size_(world_size) {}

ControlSegment::ControlSegment(ControlSegment&& other) noexcept
    : layout_(std::exchange(other.layout_, nullptr)),
      ranks_(std::move(other.ranks_)),
      rank_(other.rank_),
      world_size_(other.world_size_),
      number_(other.number_) {}

ControlSegment::~ControlSegment() {
  unmap_memory(reinterpret_cast<std::byte*>(layout_), bytes_for(world_size_));
}

ControlSegment::Slot& ControlSegment::slot(int rank) const {
  return layout_->slots[std::lower_bound(ranks_.begin(), ranks_.end(), rank) - ranks_.begin()];
}

char* ControlSegment::payload(uint64_t number, int rank) const {
  const size_t index = (number % 2) * static_cast<size_t>(world_size_) + static_cast<size_t>(rank);
  return reinterpret_cast<char*>(layout_) + sizeof(Layout) + index * kMaxPayload;
}

ControlSegment::Arrival ControlSegment::arrive(Collective collective, std::string_view bytes) {
  const uint64_t number = ++number_;
  Slot& own = slot(rank_);
  put_payload(number, rank_, bytes);
  own.collective.store(static_cast<uint32_t>(collective), std::memory_order_relaxed);
  own.number.store(number, std::memory_order_release);
  const uint64_t before = layout_->arrivals.fetch_add(1, std::memory_order_acq_rel);
  return {number, before + 1 == number * static_cast<uint64_t>(ranks_.size())};
}

void ControlSegment::put_payload(uint64_t number, int rank, std::string_view bytes) {
  bytes = bytes.substr(0, kMaxPayload);
  std::copy(bytes.begin(), bytes.end(), payload(number, rank));
  layout_->payload_bytes[number % 2][rank].store(static_cast<uint32_t>(bytes.size()),
                                                 std::memory_order_relaxed);
}

int ControlSegment::disagrees() const {
  for (const int rank : ranks_) {
    if (collective(rank) != collective(rank_)) return rank;
  }
  return -1;
}

void ControlSegment::open(uint64_t number) {
  uint32_t before = gate_of(number - 1);
  layout_->gate.compare_exchange_strong(before, gate_of(number), std::memory_order_acq_rel);
  wake();
}

bool ControlSegment::break_off(uint64_t number) {
  uint32_t before = gate_of(number - 1);
  if (layout_->gate.compare_exchange_strong(before, before | kBroken, std::memory_order_acq_rel)) {
    wake();
  }
  return !is_open(number);
}

bool ControlSegment::is_broken(uint64_t number) const {
  return layout_->gate.load(std::memory_order_acquire) == (gate_of(number - 1) | kBroken);
}

bool ControlSegment::is_open(uint64_t number) const {
  // Nobody can be further than this rank, so that equality of the low bits is enough; when the broken bit stands beside them,
  // it is the next collective that was broken off.
  return (layout_->gate.load(std::memory_order_acquire) & ~kBroken) == gate_of(number);
}

void ControlSegment::sleep(uint64_t number, Deadline deadline) const {
  const uint32_t waiting = gate_of(number - 1);
  if (layout_->gate.load(std::memory_order_acquire) != waiting) return;
  futex_wait(&layout_->gate, waiting, FutexScope::kShared, deadline);
}

void ControlSegment::wake() const { futex_wake_all(&layout_->gate, FutexScope::kShared); }

std::vector<int> ControlSegment::missing(uint64_t number) const {
  std::vector<int> ranks;
  for (const int rank : ranks_) {
    if (slot(rank).number.load(std::memory_order_acquire) < number) ranks.push_back(rank);
  }
  return ranks;
}

Collective ControlSegment::collective(int rank) const {
  return static_cast<Collective>(slot(rank).collective.load(std::memory_order_acquire));
}

void ControlSegment::set_cancelled(bool cancelled) {
  slot(rank_).cancelled.store(cancelled ? 1 : 0, std::memory_order_release);
}

bool ControlSegment::has_cancelled(int rank) const {
  return slot(rank).cancelled.load(std::memory_order_acquire) != 0;
}

std::vector<std::string> ControlSegment::payloads(uint64_t number) const {
  std::vector<std::string> all;
  for (int rank = 0; rank < world_size_; ++rank) {
    const size_t bytes = layout_->payload_bytes[number % 2][rank].load(std::memory_order_relaxed);
    all.emplace_back(payload(number, rank), std::min(bytes, kMaxPayload));
  }
  return all;
}

}  // namespace amxt::comm
