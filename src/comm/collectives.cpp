#include "comm/collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <utility>

#include "base/text.h"
#include "comm/group_collectives.h"

namespace amxt::comm {
namespace {

// Around any transport: arguments are checked before a byte moves, calls are counted and told.
class WatchedCollectives final : public Collectives {
 public:
  WatchedCollectives(std::unique_ptr<Collectives> inner, Log* log)
      : inner_(std::move(inner)), log_(log) {}

  const char* transport() const override { return inner_->transport(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  uint64_t number() const override { return inner_->number(); }

  Status all_reduce(const void* send, void* receive, int64_t count, DType dtype, ReduceOp op,
                    const Limits& limits) override {
    AMXT_TRY(check(kAllReduce, dtype, op));
    AMXT_ASSIGN(const int64_t bytes, bytes_of(kAllReduce, {&count, 1}, dtype));
    AMXT_TRY(check_buffers(kAllReduce, bytes, {send, receive}));
    return watch(kAllReduce, bytes, dtype, op,
                 [&] { return inner_->all_reduce(send, receive, count, dtype, op, limits); });
  }
  Status all_gather(const void* send, void* receive, std::span<const int64_t> counts, DType dtype,
                    const Limits& limits) override {
    AMXT_TRY(check(kAllGather, dtype, ReduceOp::kSum));
    AMXT_TRY(check_length(kAllGather, counts));
    AMXT_ASSIGN(const int64_t bytes, bytes_of(kAllGather, counts, dtype));
    AMXT_TRY(check_buffers(kAllGather, bytes, {receive}));
    AMXT_TRY(check_buffers(kAllGather, counts[static_cast<size_t>(rank())], {send}));
    return watch(kAllGather, bytes, dtype, {},
                 [&] { return inner_->all_gather(send, receive, counts, dtype, limits); });
  }
  Status reduce_scatter(const void* send, void* receive, std::span<const int64_t> counts,
                        DType dtype, ReduceOp op, const Limits& limits) override {
    AMXT_TRY(check(kReduceScatter, dtype, op));
    AMXT_TRY(check_length(kReduceScatter, counts));
    AMXT_ASSIGN(const int64_t bytes, bytes_of(kReduceScatter, counts, dtype));
    AMXT_TRY(check_buffers(kReduceScatter, bytes, {send}));
    AMXT_TRY(check_buffers(kReduceScatter, counts[static_cast<size_t>(rank())], {receive}));
    return watch(kReduceScatter, bytes, dtype, op,
                 [&] { return inner_->reduce_scatter(send, receive, counts, dtype, op, limits); });
  }
  Status broadcast(void* data, int64_t count, DType dtype, int root,
                   const Limits& limits) override {
    AMXT_TRY(check(kBroadcast, dtype, ReduceOp::kSum));
    AMXT_TRY(check_rank(kBroadcast, "root", root));
    AMXT_ASSIGN(const int64_t bytes, bytes_of(kBroadcast, {&count, 1}, dtype));
    AMXT_TRY(check_buffers(kBroadcast, bytes, {data}));
    return watch(kBroadcast, bytes, dtype, {},
                 [&] { return inner_->broadcast(data, count, dtype, root, limits); });
  }
  Status all_to_all(const void* send, std::span<const int64_t> send_counts, void* receive,
                    std::span<const int64_t> receive_counts, DType dtype,
                    const Limits& limits) override {
    AMXT_TRY(check(kAllToAll, dtype, ReduceOp::kSum));
    AMXT_TRY(check_length(kAllToAll, send_counts));
    AMXT_TRY(check_length(kAllToAll, receive_counts));
    AMXT_ASSIGN(const int64_t out, bytes_of(kAllToAll, send_counts, dtype));
    AMXT_ASSIGN(const int64_t in, bytes_of(kAllToAll, receive_counts, dtype));
    AMXT_TRY(check_buffers(kAllToAll, out, {send}));
    AMXT_TRY(check_buffers(kAllToAll, in, {receive}));
    return watch(kAllToAll, std::max(in, out), dtype, {}, [&] {
      return inner_->all_to_all(send, send_counts, receive, receive_counts, dtype, limits);
    });
  }
  Status send(const void* data, int64_t count, DType dtype, int peer,
              const Limits& limits) override {
    AMXT_TRY(check(kSend, dtype, ReduceOp::kSum));
    AMXT_TRY(check_peer(kSend, peer));
    AMXT_ASSIGN(const int64_t bytes, bytes_of(kSend, {&count, 1}, dtype));
    AMXT_TRY(check_buffers(kSend, bytes, {data}));
    return watch(kSend, bytes, dtype, {},
                 [&] { return inner_->send(data, count, dtype, peer, limits); });
  }
  Status receive(void* data, int64_t count, DType dtype, int peer, const Limits& limits) override {
    AMXT_TRY(check(kReceive, dtype, ReduceOp::kSum));
    AMXT_TRY(check_peer(kReceive, peer));
    AMXT_ASSIGN(const int64_t bytes, bytes_of(kReceive, {&count, 1}, dtype));
    AMXT_TRY(check_buffers(kReceive, bytes, {data}));
    return watch(kReceive, bytes, dtype, {},
                 [&] { return inner_->receive(data, count, dtype, peer, limits); });
  }
  void give_up(Error why) override { inner_->give_up(std::move(why)); }
  Status barrier(const Limits& limits) override {
    return watch(kBarrier, 0, DType::kU8, {}, [&] { return inner_->barrier(limits); });
  }

  Status exchange(const CollectiveCall& call, const void* own, void* all, int64_t bytes,
                  const Limits& limits) override {
    return inner_->exchange(call, own, all, bytes, limits);
  }

  Result<std::unique_ptr<Collectives>> split(int color, int key, const Limits& limits) override {
    AMXT_ASSIGN(auto part, inner_->split(color, key, limits));
    if (part == nullptr) return std::unique_ptr<Collectives>();
    return watch_collectives(std::move(part), log_);
  }

  std::vector<Counter> counters() const override {
    const std::lock_guard lock(mutex_);
    std::vector<Counter> all;
    for (const Counter& counter : counters_) {
      if (counter.calls > 0) all.push_back(counter);
    }
    return all;
  }

 private:
  enum Kind {
    kAllReduce,
    kAllGather,
    kReduceScatter,
    kBroadcast,
    kAllToAll,
    kSend,
    kReceive,
    kBarrier,
    kKinds
  };
  static const char* name(Kind kind) {
    constexpr std::array<const char*, kKinds> kNames{"all_reduce", "all_gather", "reduce_scatter",
                                                     "broadcast",  "all_to_all", "send",
                                                     "receive",    "barrier"};
    return kNames[kind];
  }

  static Error refuse(Kind kind, const std::string& why) {
    return Error(Code::kInvalidArgument, fmt::format("{}: {}", name(kind), why));
  }
  static Status check(Kind kind, DType dtype, ReduceOp op) {
    if (!is_collective_dtype(dtype)) {
      return refuse(kind,
                    fmt::format("{} is not F32, BF16, F16, I32, I64 or U8", dtype_name(dtype)));
    }
    if (op < ReduceOp::kSum || op > ReduceOp::kAvg)
      return refuse(kind, fmt::format("operation {} is unknown", static_cast<int>(op)));
    return {};
  }
  Status check_rank(Kind kind, const char* what, int rank_asked) const {
    if (rank_asked >= 0 && rank_asked < size()) return {};
    return refuse(kind, fmt::format("{} is rank {} of {}", what, rank_asked, size()));
  }
  Status check_peer(Kind kind, int peer) const {
    AMXT_TRY(check_rank(kind, "the peer", peer));
    if (peer == rank()) return refuse(kind, fmt::format("the peer, rank {}, is this rank", peer));
    return {};
  }
  Status check_length(Kind kind, std::span<const int64_t> counts) const {
    if (static_cast<int64_t>(counts.size()) == size()) return {};
    return refuse(kind, fmt::format("{} counts for {} ranks", counts.size(), size()));
  }
  static Result<int64_t> bytes_of(Kind kind, std::span<const int64_t> counts, DType dtype) {
    const int64_t most = INT64_MAX / dtype_bytes(dtype);
    int64_t all = 0;
    for (const int64_t count : counts) {
      if (count < 0) return refuse(kind, fmt::format("a count of {}", count));
      if (count > most - all) return refuse(kind, "the counts pass 2^63 bytes");
      all += count;
    }
    return all * dtype_bytes(dtype);
  }
  static Status check_buffers(Kind kind, int64_t bytes, std::initializer_list<const void*> all) {
    for (const void* buffer : all) {
      if (bytes > 0 && buffer == nullptr) return refuse(kind, "a buffer is NULL");
    }
    return {};
  }

  template <typename Body>
  Status watch(Kind kind, int64_t bytes, DType dtype, std::optional<ReduceOp> op, Body&& body) {
    const int64_t start = monotonic_ns();
    Status status = body();
    const int64_t ns = monotonic_ns() - start;
    {
      const std::lock_guard lock(mutex_);
      Counter& counter = counters_[kind];
      counter.name = name(kind);
      ++counter.calls;
      counter.bytes += bytes;
      counter.ns += ns;
    }
    if (log_ != nullptr && log_->wants(LogLevel::kDebug)) {
      log_->debug(fmt::format(
          "{}: rank {} of {}, {} of {}{}{} in {:.3f} ms: {}", transport(), rank(), size(),
          name(kind), bytes_text(static_cast<uint64_t>(bytes)), bytes > 0 ? " " : "",
          bytes > 0 ? fmt::format("{}{}{}", dtype_name(dtype), op ? ", " : "",
                                  op ? reduce_op_name(*op) : "")
                    : "",
          static_cast<double>(ns) / 1e6, status ? "done" : status.error().message()));
    }
    return status;
  }

  const std::unique_ptr<Collectives> inner_;
  Log* const log_;
  mutable std::mutex mutex_;
  std::array<Counter, kKinds> counters_;
};

}  // namespace

std::unique_ptr<Collectives> watch_collectives(std::unique_ptr<Collectives> inner, Log* log) {
  return std::make_unique<WatchedCollectives>(std::move(inner), log);
}

Result<std::unique_ptr<Collectives>> make_collectives(Group& group,
                                                      const CollectiveOptions& options, Log* log,
                                                      const Limits& limits) {
  AMXT_ASSIGN(auto made,
              GroupCollectives::create(
                  group, options.transport == CollectiveOptions::Transport::kWire, log, limits));
  return watch_collectives(std::move(made), log);
}

}  // namespace amxt::comm
