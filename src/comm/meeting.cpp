#include "comm/meeting.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace amxt::comm {

std::string pack_payloads(std::span<const std::string> payloads) {
  std::string packed;
  if (std::all_of(payloads.begin(), payloads.end(), [](const auto& p) { return p.empty(); })) {
    return packed;
  }
  for (const std::string& payload : payloads) {
    const auto length = static_cast<uint32_t>(payload.size());
    packed.append(reinterpret_cast<const char*>(&length), sizeof length);
    packed += payload;
  }
  return packed;
}

std::optional<std::vector<std::string>> unpack_payloads(std::string_view packed, size_t count) {
  std::vector<std::string> payloads;
  if (packed.empty()) {
    payloads.resize(count);
    return payloads;
  }
  for (size_t i = 0; i < count; ++i) {
    uint32_t length = 0;
    if (packed.size() < sizeof length) return std::nullopt;
    std::memcpy(&length, packed.data(), sizeof length);
    packed.remove_prefix(sizeof length);
    if (length > packed.size() || length > ControlSegment::kMaxPayload) return std::nullopt;
    payloads.emplace_back(packed.substr(0, length));
    packed.remove_prefix(length);
  }
  if (!packed.empty()) return std::nullopt;
  return payloads;
}

Meeting::Meeting(const Nodes& nodes, Name name, Open open)
    : nodes_(nodes),
      name_(std::move(name)),
      open_(std::move(open)),
      arrivals_(static_cast<size_t>(nodes.count())),
      waits_at_(nodes.ranks.size()) {}

Status Meeting::arrive(int rank, Collective collective, uint64_t number,
                       const std::string& payloads) {
  const std::lock_guard lock(mutex_);
  if (closed_) return {};
  const int node = nodes_.node_of(rank);
  Arrival& arrival = arrivals_[static_cast<size_t>(node)];
  auto unpacked = unpack_payloads(payloads, static_cast<size_t>(nodes_.local_size(node)));
  if (number != opened_ + 1 || arrival.rank >= 0 || !unpacked) {
    return Error(Code::kCommProtocol,
                 fmt::format("{} arrived at collective {} of its node, where the job is at {}",
                             name_(rank), number, opened_ + 1))
        .with_rank(rank);
  }
  arrival = {rank, collective, *std::move(unpacked)};
  for (const Arrival& other : arrivals_) {
    if (other.rank < 0) continue;
    if (other.collective == collective) continue;
    const bool first = rank < other.rank;
    const Arrival& one = first ? arrival : other;
    const Arrival& two = first ? other : arrival;
    return Error(Code::kCommProtocol, fmt::format("{} is in {} while {} is in {}", name_(two.rank),
                                                  collective_name(two.collective), name_(one.rank),
                                                  collective_name(one.collective)))
        .with_rank(two.rank);
  }
  if (std::any_of(arrivals_.begin(), arrivals_.end(), [](const Arrival& a) { return a.rank < 0; }))
    return {};
  ++opened_;
  open_(opened_, all_payloads());
  for (Arrival& there : arrivals_) there = Arrival();
  return {};
}

std::string Meeting::all_payloads() const {
  std::vector<std::string> all(nodes_.ranks.size());
  for (int node = 0; node < nodes_.count(); ++node) {
    const Arrival& arrival = arrivals_[static_cast<size_t>(node)];
    for (int i = 0; i < nodes_.local_size(node); ++i) {
      const int rank = nodes_.on(node)[static_cast<size_t>(i)];
      all[static_cast<size_t>(rank)] = arrival.payloads[static_cast<size_t>(i)];
    }
  }
  return pack_payloads(all);
}

void Meeting::waits(int rank, uint64_t number) {
  const std::lock_guard lock(mutex_);
  waits_at_[static_cast<size_t>(rank)] = number;
}

std::vector<int> Meeting::missing(uint64_t number) const {
  std::vector<int> ranks;
  for (int node = 0; node < nodes_.count(); ++node) {
    if (arrivals_[static_cast<size_t>(node)].rank >= 0) continue;
    for (const int rank : nodes_.on(node)) {
      if (waits_at_[static_cast<size_t>(rank)] < number) ranks.push_back(rank);
    }
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

std::optional<Error> Meeting::give_up(int rank, uint64_t number, const std::string& what,
                                      Code why) {
  const std::lock_guard lock(mutex_);
  if (closed_ || number <= opened_) return std::nullopt;
  if (why == Code::kCancelled) {
    return Error(Code::kCommAborted, name_(rank) + " cancelled its wait").with_rank(rank);
  }
  waits_at_[static_cast<size_t>(rank)] = number;
  const std::vector<int> late = missing(number);
  std::string who;
  for (const int other : late) who += (who.empty() ? "" : ", ") + name_(other);
  if (who.empty()) who = "the last rank";  // it is on its way
  return Error(Code::kCommTimeout, fmt::format("{} did not arrive at {} within the deadline of {}",
                                               who, what, name_(rank)))
      .with_rank(late.empty() ? -1 : late.front());
}

uint64_t Meeting::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  return opened_;
}

}  // namespace amxt::comm
