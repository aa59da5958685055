// Collectives of ranks that share one node's memory; also of one rank alone.
#pragma once

#include <memory>
#include <vector>

#include "comm/group_collectives.h"

namespace amxt::comm {

class ShmCollectives final : public GroupCollectives {
 public:
  // Members of the area are the ranks of the communicator.
  ShmCollectives(std::shared_ptr<Communication> shared, Membership members,
                 std::unique_ptr<ShmArea> area)
      : GroupCollectives(std::move(shared), std::move(members)), area_(std::move(area)) {}

  const char* transport() const override { return size() == 1 ? "none" : "shm"; }

  Status all_reduce(const void* send, void* receive, int64_t count, DType dtype, ReduceOp op,
                    const Limits& limits) override;
  Status all_gather(const void* send, void* receive, std::span<const int64_t> counts, DType dtype,
                    const Limits& limits) override;
  Status reduce_scatter(const void* send, void* receive, std::span<const int64_t> counts,
                        DType dtype, ReduceOp op, const Limits& limits) override;
  Status broadcast(void* data, int64_t count, DType dtype, int root, const Limits& limits) override;
  Status all_to_all(const void* send, std::span<const int64_t> send_counts, void* receive,
                    std::span<const int64_t> receive_counts, DType dtype,
                    const Limits& limits) override;
  Status send(const void* data, int64_t count, DType dtype, int peer,
              const Limits& limits) override;
  Status receive(void* data, int64_t count, DType dtype, int peer, const Limits& limits) override;
  Status barrier(const Limits& limits) override;
  void give_up(Error why) override { (void)area_->fail(std::move(why)); }
  Status exchange(const CollectiveCall& call, const void* own, void* all, int64_t bytes,
                  const Limits& limits) override;

 private:
  std::unique_ptr<ShmArea> area_;
};

}  // namespace amxt::comm
