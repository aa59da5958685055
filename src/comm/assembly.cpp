#include "comm/assembly.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/control_segment.h"
#include "comm/handshake.h"
#include "comm/memory_file.h"
#include "comm/rendezvous_entry.h"
#include "comm/unix_socket.h"

namespace amxt::comm {
namespace {

Error same_local_rank(const Identity& one, const Identity& other, size_t ranks) {
  const bool meant_apart = ranks > static_cast<size_t>(one.local_world_size);
  return Error(Code::kMismatch,
               fmt::format("{} and {} both have local rank {}{}", rank_text(one), rank_text(other),
                           other.local_rank,
                           meant_apart ? ", and are on one machine: AMXTRAIN_NODE_ID makes "
                                         "several nodes of it"
                                       : ""))
      .with_rank(other.rank);
}

}  // namespace

Assembly::Assembly(int rank, int world_size, Log* log) : rank_(rank), log_(log) {
  members_.resize(static_cast<size_t>(world_size));
  ready_.resize(members_.size());
  near_.assign(members_.size(), std::vector<bool>(members_.size()));
}

void Assembly::enter(const Identity& own) {
  member(rank_).identity = own;
  ready_[static_cast<size_t>(rank_)] = true;
}

void Assembly::add(const Identity& identity, std::unique_ptr<Link> link) {
  Member& place = member(identity.rank);
  if (place.identity.rank >= 0) {
    refused_.push_back(std::move(link));
    return fail(there_twice(place.identity, identity));
  }
  if (link->is_stream()) {
    link->trust(ControlSegment::max_payloads(static_cast<int>(members_.size())));
  } else {
    place.process = process_descriptor(peer_credentials(link->socket()).pid);
    near_[static_cast<size_t>(rank_)][static_cast<size_t>(identity.rank)] = true;
  }
  place.identity = identity;
  place.link = std::move(link);
  if (log_ != nullptr) log_->debug(fmt::format("rank {}: met {}", rank_, rank_text(identity)));
  hear(place);
}

bool Assembly::has(int rank) const {
  return rank >= 0 && rank < static_cast<int>(members_.size()) &&
         members_[static_cast<size_t>(rank)].identity.rank >= 0;
}

bool Assembly::has_all() const { return ranks(false).empty(); }

std::vector<int> Assembly::ranks(bool there) const {
  std::vector<int> found;
  for (int rank = 0; rank < static_cast<int>(members_.size()); ++rank) {
    if (has(rank) == there) found.push_back(rank);
  }
  return found;
}

void Assembly::add_to(std::vector<pollfd>* entries) const {
  for (const Member& member : members_) {
    if (!member.link) continue;
    const short out = member.link->has_queued() ? POLLOUT : 0;
    entries->push_back({member.link->socket(), static_cast<short>(POLLIN | out), 0});
  }
}

void Assembly::hear_all() {
  for (Member& member : members_) {
    if (member.link && member.link->has_queued()) member.link->flush();
    hear(member);
  }
}

void Assembly::hear(Member& member) {
  while (member.link && failure_.ok() && !control_) {
    Message message;
    Descriptor passed;
    switch (member.link->receive(&message, &passed)) {
      case Received::kNothing:
        return;
      case Received::kClosed:
        return fail(Error(Code::kCommPeerLost, rank_text(member.identity) + " died while joining")
                        .with_rank(member.identity.rank));
      case Received::kGarbage:
        return fail(
            Error(Code::kCommProtocol, rank_text(member.identity) + " sent something unreadable")
                .with_rank(member.identity.rank));
      case Received::kMessage:
        break;
    }
    handle(member, std::move(message), std::move(passed));
  }
}

void Assembly::handle(Member& member, Message message, Descriptor passed) {
  const int rank = member.identity.rank;
  const auto index = static_cast<size_t>(rank);
  switch (message.kind) {
    case MessageKind::kAbort:
      return fail(root_cause(message));
    case MessageKind::kReady:
      ready_[index] = true;
      for (size_t peer = 0; peer < std::min(message.payload.size(), members_.size()); ++peer)
        near_[index][peer] = message.payload[peer] == '1';
      return;
    case MessageKind::kStart:
      if (rank == 0) read_nodes(message.payload);
      return;
    case MessageKind::kControl:
      if (!passed) return fail(Error(Code::kLimit, "no file descriptor left to join a group with"));
      offered_[rank] = std::move(passed);
      return take_control();
    default:
      member.early.push_back({std::move(message), std::move(passed)});
  }
}

void Assembly::tell_all(const Message& message) {
  for (Member& member : members_) {
    if (member.link) member.link->send(message);
  }
  for (const std::unique_ptr<Link>& link : refused_) link->send(message);
}

void Assembly::say_ready() {
  Message ready;
  ready.kind = MessageKind::kReady;
  for (const bool near : near_[static_cast<size_t>(rank_)]) ready.payload += near ? '1' : '0';
  tell_all(ready);
}

bool Assembly::all_ready() const {
  return std::all_of(ready_.begin(), ready_.end(), [](bool ready) { return ready; });
}

Status Assembly::make_nodes() {
  for (size_t rank = 0; rank < near_.size(); ++rank) near_[rank][rank] = true;
  const std::vector<int> node_of_rank = join_near_ranks(near_);
  nodes_ = Nodes::of(node_of_rank);
  AMXT_TRY(check_local_ranks());
  Message start;
  start.kind = MessageKind::kStart;
  for (const int node : node_of_rank) {
    start.payload += static_cast<char>(node & 0xFF);
    start.payload += static_cast<char>(node >> 8);
  }
  tell_all(start);
  return {};
}

void Assembly::read_nodes(std::string_view payload) {
  std::vector<int> node_of_rank;
  int count = 0;
  for (size_t i = 0; i + 1 < payload.size(); i += 2) {
    const int node =
        static_cast<unsigned char>(payload[i]) | static_cast<unsigned char>(payload[i + 1]) << 8;
    if (node > count) break;  // numbered by their lowest ranks
    count = std::max(count, node + 1);
    node_of_rank.push_back(node);
  }
  if (node_of_rank.size() != members_.size() || payload.size() != 2 * members_.size()) {
    return fail(
        Error(Code::kCommProtocol, rank_text(member(0).identity) + " sent nodes that make no sense")
            .with_rank(0));
  }
  nodes_ = Nodes::of(node_of_rank);
  take_control();
}

Status Assembly::check_local_ranks() {
  for (const std::vector<int>& ranks : nodes_.nodes) {
    std::map<int, const Identity*> taken;
    for (const int rank : ranks) {
      const Identity& identity = member(rank).identity;
      const auto [other, is_new] = taken.emplace(identity.local_rank, &identity);
      if (!is_new) return same_local_rank(*other->second, identity, ranks.size());
    }
    if (ranks.size() > static_cast<size_t>(ControlSegment::kMaxLocalRanks)) {
      return Error(Code::kLimit, fmt::format("{} ranks on one node are more than the limit of {}",
                                             ranks.size(), ControlSegment::kMaxLocalRanks));
    }
  }
  return {};
}

// The leader's part; the others wait for it.
Status Assembly::make_control() {
  const int node = nodes_.node_of(rank_);
  if (nodes_.leader(node) != rank_) return {};
  AMXT_ASSIGN(control_,
              make_memory_file("amxtrain-control",
                               ControlSegment::bytes_for(static_cast<int>(members_.size()))));
  Message message;
  message.kind = MessageKind::kControl;
  for (const int rank : nodes_.on(node)) {
    if (rank != rank_) member(rank).link->send(message, control_.get());
  }
  return {};
}

// It may come before rank 0 has said who leads.
void Assembly::take_control() {
  if (!has_nodes()) return;
  const auto offer = offered_.find(nodes_.leader(nodes_.node_of(rank_)));
  if (offer != offered_.end()) control_ = std::move(offer->second);
  offered_.clear();
}

std::vector<int> Assembly::awaited() const {
  std::vector<int> waiting;
  for (size_t rank = 0; rank < ready_.size(); ++rank) {
    if (!ready_[rank]) waiting.push_back(static_cast<int>(rank));
  }
  // All are, but rank 0, or the leader here, did not say so.
  if (waiting.empty()) {
    waiting.push_back(has_nodes() ? nodes_.leader(nodes_.node_of(rank_)) : 0);
  }
  return waiting;
}

Gathering Assembly::take() {
  describe_nodes();
  return Gathering{std::move(members_), std::move(nodes_), std::move(control_)};
}

void Assembly::describe_nodes() {
  const bool several = nodes_.count() > 1;
  for (Member& member : members_) {
    Nodes::Rank& rank = nodes_.ranks[static_cast<size_t>(member.identity.rank)];
    rank.host = plain_word(get_word(member.identity.host));
    if (rank.host.empty()) rank.host = host_name();
    if (several) rank.address = get_word(member.identity.address);
  }
  const int node = nodes_.node_of(rank_);
  const int local = nodes_.local_of(rank_), size = nodes_.local_size(node);
  const bool as_told = local == own().local_rank && size == own().local_world_size;
  if (log_ == nullptr || as_told) return;
  log_->info(
      fmt::format("rank {}: the launcher says local rank {} of {}; by what shares this machine "
                  "it is {} of {}",
                  rank_, own().local_rank, own().local_world_size, local, size));
}

void Assembly::fail(Error error) {
  if (failure_.ok()) failure_ = std::move(error);
}

}  // namespace amxt::comm
