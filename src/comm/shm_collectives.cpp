#include "comm/shm_collectives.h"

#include <numeric>

namespace amxt::comm {
namespace {

int64_t sum(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

Status ShmCollectives::all_reduce(const void* send, void* receive, int64_t count, DType dtype,
                                  ReduceOp op, const Limits& limits) {
  const CollectiveCall call{"all_reduce", dtype, static_cast<int32_t>(op), -1, count, 0};
  return area_->all_reduce(call, send, receive, count, dtype, op, size(), limits);
}

Status ShmCollectives::all_gather(const void* send, void* receive, std::span<const int64_t> counts,
                                  DType dtype, const Limits& limits) {
  const CollectiveCall call{"all_gather", dtype, -1, -1, sum(counts), hash_of(counts)};
  return area_->gather(call, send, receive, pieces_of(counts), dtype_bytes(dtype), limits);
}

Status ShmCollectives::reduce_scatter(const void* send, void* receive,
                                      std::span<const int64_t> counts, DType dtype, ReduceOp op,
                                      const Limits& limits) {
  const CollectiveCall call{"reduce_scatter", dtype,          static_cast<int32_t>(op), -1,
                            sum(counts),      hash_of(counts)};
  return area_->reduce(call, send, pieces_of(counts), dtype, op, size(), receive, limits);
}

Status ShmCollectives::broadcast(void* data, int64_t count, DType dtype, int root,
                                 const Limits& limits) {
  const CollectiveCall call{"broadcast", dtype, -1, root, count, 0};
  return area_->broadcast(call, data, count * dtype_bytes(dtype), root, limits);
}

Status ShmCollectives::all_to_all(const void* send, std::span<const int64_t> send_counts,
                                  void* receive, std::span<const int64_t> receive_counts,
                                  DType dtype, const Limits& limits) {
  const CollectiveCall call{"all_to_all", dtype, -1, -1, CollectiveCall::kVaries};
  return area_->all_to_all(call, send, pieces_of(send_counts), receive, pieces_of(receive_counts),
                           dtype_bytes(dtype), limits);
}

Status ShmCollectives::send(const void* data, int64_t count, DType dtype, int peer,
                            const Limits& limits) {
  const CollectiveCall call{"send", dtype, -1, -1, count, 0};
  return area_->send(call, data, count * dtype_bytes(dtype), peer, limits);
}

Status ShmCollectives::receive(void* data, int64_t count, DType dtype, int peer,
                               const Limits& limits) {
  const CollectiveCall call{"receive", dtype, -1, -1, count, 0};
  return area_->receive(call, data, count * dtype_bytes(dtype), peer, limits);
}

Status ShmCollectives::barrier(const Limits& limits) {
  return area_->barrier(CollectiveCall::barrier(), limits);
}

Status ShmCollectives::exchange(const CollectiveCall& call, const void* own, void* all,
                                int64_t bytes, const Limits& limits) {
  const std::vector<int64_t> counts(static_cast<size_t>(size()), bytes);
  return area_->gather(call, own, all, pieces_of(counts), 1, limits);
}

}  // namespace amxt::comm
