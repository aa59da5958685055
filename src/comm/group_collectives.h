// What communicators of one group share, and how one is split into others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/collectives.h"
#include "comm/group.h"
#include "comm/shm_area.h"
#include "comm/wire.h"

namespace amxt::comm {

// Of one group and its first communicator; lives as long as any of them.
struct Communication {
  Group* group = nullptr;
  std::shared_ptr<ShmPool> pool;
  std::shared_ptr<Wire> wire;        // null on one node
  std::vector<int> node_of;          // by rank of the group
  std::atomic<uint64_t> next_id{1};  // of this rank's communicators; another on each rank
};

// Who is in a communicator.
struct Membership {
  std::vector<int> ranks;     // of the group, by rank of the communicator
  std::vector<uint64_t> ids;  // what each of them calls it; no rank has two communicators of one id
  int rank = 0;               // this one's
};

class GroupCollectives : public Collectives {
 public:
  // The first one, of all ranks. Collective.
  static Result<std::unique_ptr<Collectives>> create(Group& group, bool over_wire, Log* log,
                                                     const Limits& limits);

  ~GroupCollectives() override;
  GroupCollectives(const GroupCollectives&) = delete;
  GroupCollectives& operator=(const GroupCollectives&) = delete;

  int rank() const final { return rank_; }
  int size() const final { return static_cast<int>(ranks_.size()); }
  uint64_t number() const final { return number_; }
  Result<std::unique_ptr<Collectives>> split(int color, int key, const Limits& limits) final;

 protected:
  GroupCollectives(std::shared_ptr<Communication> shared, Membership members);

  const std::shared_ptr<Communication> shared_;
  const std::vector<int> ranks_;
  const std::vector<uint64_t> ids_;
  const int rank_;

 private:
  // `area` is for its members on this node.
  static std::unique_ptr<Collectives> make(std::shared_ptr<Communication> shared,
                                           Membership members, int area);

  const uint64_t number_;
};

// The counts of ranks as places in one array.
std::vector<ShmArea::Piece> pieces_of(std::span<const int64_t> counts);
uint64_t hash_of(std::span<const int64_t> counts);

}  // namespace amxt::comm
