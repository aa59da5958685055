// NcclCollectives: collectives on the memory of GPUs, by NCCL on a CUDA stream of the host's.
//
// The idea: a communicator of the same ranks on the host (shared memory, gloo) goes along. Over it the ranks agree about each call before
// anything is enqueued, so that a rank that does not come, is dead or calls something else is found within the deadline and named, and no
// kernel is left waiting on a GPU for a rank that never comes.
//
// When is a call complete? It is an operation of the stream: it returns once all ranks have made the same call, NCCL has enqueued it and
// reports no error. Buffers belong to it until the stream has come past it, which synchronize() waits for, and so does any other wait of
// the host's on that stream. send() and receive() of two ranks may be enqueued at different times.
//
// Thread-safety: as Collectives; synchronize() counts as a call. Invariants: NCCL's calls never block (its communicator is made so, and
// polled with our deadline); after an error, a deadline or a cancel the communicator is aborted, dead, and so is the host's of the same
// ranks; the context of the stream is current during NCCL's calls and the caller's own again after them. Integers are added in their own
// width, also for kAvg.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/collectives.h"
#include "comm/cuda.h"
#include "comm/group.h"
#include "comm/nccl.h"

namespace amxt::comm {

class NcclCollectives final : public Collectives {
 public:
  struct Options {
    CudaStream stream = nullptr;
    int device = 0;  // of the default stream; another one knows its own
    // Of communicators made over this one of the host's: the same on all ranks, another for each.
    uint32_t attempt = 0;
    std::string nccl = nccl_library_name();
    std::string cuda = cuda_library_name();
  };

  // Collective over `host`. A rank that fails is named on all of them: kNotFound
  // without a library, kUnsupported for one that is too old or lacks a function, kMismatch for different versions of NCCL.
  static Result<std::unique_ptr<NcclCollectives>> create(Group& group,
                                                         std::shared_ptr<Collectives> host,
                                                         const Options& options,
                                                         const Limits& limits);
  ~NcclCollectives() override;

  // The stream of the calls that follow; of the same device.
  void use(CudaStream stream) { stream_ = stream; }
  int device() const { return device_; }
  // False after an error or finalize().
  bool is_alive() const { return !dead_; }
  // Waits until the stream has done all that was enqueued on it.
  Status synchronize(const Limits& limits);
  // Collective: waits for the stream, and takes leave of the other ranks. Without it the communicator is aborted when it is destroyed.
  Status finalize(const Limits& limits);

  const char* transport() const override { return "nccl"; }
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  uint64_t number() const override { return host_->number(); }

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
  // Of the hosts and their streams: all have come here, and what they had enqueued is done.
  Status barrier(const Limits& limits) override;
  void give_up(Error why) override { (void)fail(std::move(why)); }
  // Of host memory.
  Status exchange(const CollectiveCall& call, const void* own, void* all, int64_t bytes,
                  const Limits& limits) override {
    return host_->exchange(call, own, all, bytes, limits);
  }
  // By the host's communicator; the new one begins on the same stream.
  Result<std::unique_ptr<Collectives>> split(int color, int key, const Limits& limits) override;

 private:
  struct Call;   // what all ranks must say alike
  struct Offer;  // what a rank brings to the start
  struct State;  // how far its start is

  NcclCollectives(Group& group, std::shared_ptr<Collectives> host, const Options& options)
      : group_(group),
        host_(std::move(host)),
        stream_(options.stream),
        device_(options.device),
        attempt_(options.attempt),
        nccl_name_(options.nccl),
        cuda_name_(options.cuda) {}

  Status open();
  Status start(const Limits& limits);
  Result<NcclUniqueId> agree_on_id(const Status& own, const Limits& limits);
  Status connect(const NcclUniqueId& id, const Limits& limits);
  std::optional<Error> connecting_error(const Limits& limits, bool* ready);

  Status agree(const Call& call, const Limits& limits);
  Status agree_counts(DType dtype, std::span<const int64_t> send, std::span<const int64_t> receive,
                      const Limits& limits);
  template <typename Body>
  Status enqueue(const Call& call, const Limits& limits, Body&& body);
  template <typename Body>
  NcclResult grouped(Body&& body);
  Status settle(const std::string& what, NcclResult result, const Limits& limits);
  Status interrupted(const std::string& what, const Limits& limits) const;
  std::string named(const std::string& text) const;
  Error from_nccl(const std::string& what, NcclResult result) const;

  Status usable() const;
  // The end of this communicator, and of the host's for the other ranks.
  Error fail(Error error);
  void end_communicator();

  Group& group_;
  const std::shared_ptr<Collectives> host_;
  CudaStream stream_;
  const int device_;
  const uint32_t attempt_;
  uint32_t splits_ = 0;
  const std::string nccl_name_, cuda_name_;
  const Nccl* nccl_ = nullptr;
  const Cuda* cuda_ = nullptr;
  CudaContext context_ = nullptr;
  NcclComm comm_ = nullptr;
  std::array<uint8_t, 16> nonce_{};  // rank 0's: which start this communicator came from
  std::optional<Error> dead_;
};

}  // namespace amxt::comm
