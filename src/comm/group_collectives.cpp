#include "comm/group_collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "comm/gloo_wire.h"
#include "comm/shm_collectives.h"
#include "comm/wire_collectives.h"

namespace amxt::comm {

std::vector<ShmArea::Piece> pieces_of(std::span<const int64_t> counts) {
  std::vector<ShmArea::Piece> pieces;
  int64_t offset = 0;
  for (const int64_t count : counts) {
    pieces.push_back({offset, count});
    offset += count;
  }
  return pieces;
}

uint64_t hash_of(std::span<const int64_t> counts) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, a word at a time
  for (const int64_t count : counts) hash = (hash ^ static_cast<uint64_t>(count)) * 0x100000001b3u;
  return hash;
}

// The first rank of a communicator calls no other by that id. The first communicator of all has id 0, and is noted as the group itself.
GroupCollectives::GroupCollectives(std::shared_ptr<Communication> shared, Membership members)
    : shared_(std::move(shared)),
      ranks_(std::move(members.ranks)),
      ids_(std::move(members.ids)),
      rank_(members.rank),
      number_(ids_[0] == 0 ? 0
                           : ids_[0] * static_cast<uint64_t>(shared_->group->size()) +
                                 static_cast<uint64_t>(ranks_[0])) {
  if (number_ != 0) shared_->group->open_calls(number_, ranks_);
}

GroupCollectives::~GroupCollectives() {
  if (number_ != 0) shared_->group->close_calls(number_);
}

std::unique_ptr<Collectives> GroupCollectives::make(std::shared_ptr<Communication> shared,
                                                    Membership members, int area) {
  const std::vector<int>& ranks = members.ranks;
  const int rank = members.rank;
  // Members by node, nodes in the order of their first members.
  std::vector<std::vector<int>> nodes;
  std::vector<int> ids;
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    const int id = shared->node_of[static_cast<size_t>(ranks[static_cast<size_t>(r)])];
    const auto found = std::find(ids.begin(), ids.end(), id);
    const auto index = static_cast<size_t>(found - ids.begin());
    if (found == ids.end()) {
      ids.push_back(id);
      nodes.emplace_back();
    }
    nodes[index].push_back(r);
  }
  const auto own =
      std::find(ids.begin(), ids.end(),
                shared->node_of[static_cast<size_t>(ranks[static_cast<size_t>(rank)])]);
  const auto node = static_cast<size_t>(own - ids.begin());
  const std::vector<int>& local = nodes[node];
  const auto member = static_cast<int>(std::find(local.begin(), local.end(), rank) - local.begin());
  auto part = std::make_unique<ShmArea>(shared->pool, area, local, member,
                                        [group = shared->group, wire = shared->wire]() -> Status {
                                          AMXT_TRY(group->check());
                                          if (wire != nullptr) return wire->check();
                                          return {};
                                        });
  if (nodes.size() == 1) {
    return std::make_unique<ShmCollectives>(std::move(shared), std::move(members), std::move(part));
  }
  return std::make_unique<WireCollectives>(std::move(shared), std::move(members), std::move(part),
                                           std::move(nodes), static_cast<int>(node));
}

Result<std::unique_ptr<Collectives>> GroupCollectives::create(Group& group, bool over_wire,
                                                              Log* log, const Limits& limits) {
  AMXT_TRY(group.meet_for_collectives(limits));
  auto shared = std::make_shared<Communication>();
  shared->group = &group;
  const auto world = static_cast<size_t>(group.size());
  Membership members{std::vector<int>(world), std::vector<uint64_t>(world, 0), group.rank()};
  std::iota(members.ranks.begin(), members.ranks.end(), 0);
  for (const int rank : members.ranks) {
    shared->node_of.push_back(over_wire ? rank : group.nodes().node_of(rank));
  }
  AMXT_ASSIGN(shared->pool, ShmPool::create(group, limits));
  if (over_wire && group.size() > 1) {
    AMXT_ASSIGN(shared->wire, make_gloo_wire(group, log, limits));
  } else if (group.node_count() > 1) {
    AMXT_ASSIGN(shared->wire, group.make_wire(limits));
  }
  // Areas are dealt out in order while nobody else asks: the node's first rank takes the first, or one for each.
  int area = over_wire ? group.local_rank() : 0;
  const int wanted = over_wire ? group.local_size() : 1;
  Status taken;
  for (int i = 0; i < wanted && group.local_rank() == 0 && taken; ++i) {
    auto one = shared->pool->take();
    if (!one) taken = std::move(one).error();
  }
  AMXT_ASSIGN(const auto all, group.exchange(taken ? "" : taken.error().message(), limits));
  for (int rank = 0; rank < group.size(); ++rank) {
    const std::string& text = all[static_cast<size_t>(rank)];
    if (!text.empty())
      return Error(Code::kLimit, fmt::format("rank {}: {}", rank, text)).with_rank(rank);
  }
  return make(std::move(shared), std::move(members), area);
}

Result<std::unique_ptr<Collectives>> GroupCollectives::split(int color, int key,
                                                             const Limits& limits) {
  struct Wish {
    int64_t color, key;
    uint64_t id;
  };
  const auto world = static_cast<size_t>(size());
  std::vector<Wish> wishes(world);
  const Wish own{color, key, shared_->next_id.fetch_add(1)};
  const CollectiveCall call = CollectiveCall::split(color, key);
  AMXT_TRY(exchange(call, &own, wishes.data(), sizeof own, limits));

  std::vector<int> members;  // ranks of this communicator
  for (size_t r = 0; r < world; ++r) {
    if (color >= 0 && wishes[r].color == color) members.push_back(static_cast<int>(r));
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return wishes[static_cast<size_t>(a)].key < wishes[static_cast<size_t>(b)].key;
  });
  const auto group_rank = [&](int r) { return ranks_[static_cast<size_t>(r)]; };
  const auto node = [&](int r) { return shared_->node_of[static_cast<size_t>(group_rank(r))]; };

  // The first member on each node takes an area for those there.
  int leader = -1;
  for (const int r : members) {
    if (leader < 0 && node(r) == node(rank_)) leader = r;
  }
  constexpr int64_t kNone = -1, kFull = -2;
  int64_t taken = kNone;
  if (leader == rank_ && color >= 0) {
    auto area = shared_->pool->take();
    taken = area ? *area : kFull;
  }
  std::vector<int64_t> areas(world);
  AMXT_TRY(exchange(call, &taken, areas.data(), sizeof taken, limits));
  const auto full = std::find(areas.begin(), areas.end(), kFull);
  if (full != areas.end()) {
    if (taken >= 0) shared_->pool->give_back(static_cast<int>(taken));
    return Error(Code::kLimit, fmt::format("rank {}: its node has no room for another communicator",
                                           full - areas.begin()))
        .with_rank(static_cast<int32_t>(full - areas.begin()));
  }
  if (color < 0) return std::unique_ptr<Collectives>();

  Membership part;
  for (const int r : members) {
    if (r == rank_) part.rank = static_cast<int>(part.ranks.size());
    part.ranks.push_back(group_rank(r));
    part.ids.push_back(wishes[static_cast<size_t>(r)].id);
  }
  return make(shared_, std::move(part), static_cast<int>(areas[static_cast<size_t>(leader)]));
}

}  // namespace amxt::comm
