// Ranks with a GPU each, for tests: over the stub of NCCL and CUDA, whose GPUs are the host's memory, or, with AMXTRAIN_TEST_NCCL=1, over
// the real ones, as many ranks as there are GPUs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/dynamic_library.h"
#include "comm/nccl_collectives.h"

namespace amxt::test {

inline bool real_nccl() {
  const char* wished = std::getenv("AMXTRAIN_TEST_NCCL");
  return wished != nullptr && std::string(wished) == "1";
}
inline std::string nccl_under_test() {
  return real_nccl() ? comm::nccl_library_name() : AMXT_TEST_STUBS_DIR "/libnccl.so.2";
}
inline std::string cuda_under_test() {
  return real_nccl() ? comm::cuda_library_name() : AMXT_TEST_STUBS_DIR "/libnccl.so.2";
}

// The part of CUDA that the tests need for themselves. Every call must succeed.
class Gpu {
 public:
  Gpu() {
    auto opened = DynamicLibrary::open(cuda_under_test());
    if (!opened) {
      ADD_FAILURE() << opened.error().message();
      return;
    }
    library_ = std::move(opened).value();
    call("cuInit", 0U);
  }
  int count() const {
    int devices = 0;
    call("cuDeviceGetCount", &devices);
    return devices;
  }
  // Makes the device of that number the calling thread's, and gives a stream on it.
  comm::CudaStream stream_on(int ordinal) const {
    int device = 0;
    void *context = nullptr, *stream = nullptr;
    call("cuDeviceGet", &device, ordinal);
    call("cuDevicePrimaryCtxRetain", &context, device);
    call("cuCtxPushCurrent_v2", context);
    call("cuStreamCreate", &stream, 1U);  // beside the default stream
    return stream;
  }
  void* allocate(size_t bytes) const {
    void* memory = nullptr;
    call("cuMemAlloc_v2", &memory, std::max<size_t>(bytes, 1));
    return memory;
  }
  void free(void* memory) const { call("cuMemFree_v2", memory); }
  void upload(void* to, const void* from, size_t bytes) const {
    if (bytes > 0) call("cuMemcpyHtoD_v2", to, from, bytes);
  }
  void download(void* to, const void* from, size_t bytes) const {
    if (bytes > 0) call("cuMemcpyDtoH_v2", to, from, bytes);
  }

 private:
  template <typename... Arguments>
  void call(const char* name, Arguments... arguments) const {
    const auto function = reinterpret_cast<int (*)(Arguments...)>(library_.symbol(name));
    if (function == nullptr) {
      ADD_FAILURE() << "no function " << name;
      return;
    }
    EXPECT_EQ(function(arguments...), 0) << name;
  }
  DynamicLibrary library_;
};

// Collectives on buffers of the host by way of a GPU: up, over, the wait for the stream, down.
class ByWayOfGpu final : public comm::Collectives {
 public:
  ByWayOfGpu(std::shared_ptr<const Gpu> gpu, std::unique_ptr<comm::Collectives> inner)
      : gpu_(std::move(gpu)), inner_(std::move(inner)) {}

  const char* transport() const override { return inner_->transport(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }

  Status all_reduce(const void* send, void* receive, int64_t count, DType dtype, comm::ReduceOp op,
                    const Limits& limits) override {
    Buffer from(*gpu_, send, count, dtype), to(*gpu_, nullptr, count, dtype);
    AMXT_TRY(inner_->all_reduce(from.data, to.data, count, dtype, op, limits));
    return finish(to, receive, limits);
  }
  Status exchange(const comm::CollectiveCall& call, const void* own, void* all, int64_t bytes,
                  const Limits& limits) override {
    return inner_->exchange(call, own, all, bytes, limits);
  }
  Status all_gather(const void* send, void* receive, std::span<const int64_t> counts, DType dtype,
                    const Limits& limits) override {
    Buffer from(*gpu_, send, own(counts), dtype), to(*gpu_, nullptr, sum(counts), dtype);
    AMXT_TRY(inner_->all_gather(from.data, to.data, counts, dtype, limits));
    return finish(to, receive, limits);
  }
  Status reduce_scatter(const void* send, void* receive, std::span<const int64_t> counts,
                        DType dtype, comm::ReduceOp op, const Limits& limits) override {
    Buffer from(*gpu_, send, sum(counts), dtype), to(*gpu_, nullptr, own(counts), dtype);
    AMXT_TRY(inner_->reduce_scatter(from.data, to.data, counts, dtype, op, limits));
    return finish(to, receive, limits);
  }
  Status broadcast(void* data, int64_t count, DType dtype, int root,
                   const Limits& limits) override {
    Buffer buffer(*gpu_, data, count, dtype);
    AMXT_TRY(inner_->broadcast(buffer.data, count, dtype, root, limits));
    return finish(buffer, data, limits);
  }
  Status all_to_all(const void* send, std::span<const int64_t> send_counts, void* receive,
                    std::span<const int64_t> receive_counts, DType dtype,
                    const Limits& limits) override {
    Buffer from(*gpu_, send, sum(send_counts), dtype);
    Buffer to(*gpu_, nullptr, sum(receive_counts), dtype);
    AMXT_TRY(inner_->all_to_all(from.data, send_counts, to.data, receive_counts, dtype, limits));
    return finish(to, receive, limits);
  }
  Status send(const void* data, int64_t count, DType dtype, int peer,
              const Limits& limits) override {
    Buffer buffer(*gpu_, data, count, dtype);
    AMXT_TRY(inner_->send(buffer.data, count, dtype, peer, limits));
    return nccl().synchronize(limits);
  }
  Status receive(void* data, int64_t count, DType dtype, int peer, const Limits& limits) override {
    Buffer buffer(*gpu_, nullptr, count, dtype);
    AMXT_TRY(inner_->receive(buffer.data, count, dtype, peer, limits));
    return finish(buffer, data, limits);
  }
  Status barrier(const Limits& limits) override { return inner_->barrier(limits); }
  void give_up(Error why) override { inner_->give_up(std::move(why)); }
  Result<std::unique_ptr<comm::Collectives>> split(int color, int key,
                                                   const Limits& limits) override {
    AMXT_ASSIGN(auto part, inner_->split(color, key, limits));
    if (part == nullptr) return std::unique_ptr<comm::Collectives>();
    return std::unique_ptr<comm::Collectives>(std::make_unique<ByWayOfGpu>(gpu_, std::move(part)));
  }

 private:
  struct Buffer {
    Buffer(const Gpu& gpu, const void* from, int64_t count, DType dtype)
        : of(gpu),
          bytes(static_cast<size_t>(count * dtype_bytes(dtype))),
          data(gpu.allocate(bytes)) {
      if (from != nullptr) of.upload(data, from, bytes);
    }
    ~Buffer() { of.free(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    const Gpu& of;
    const size_t bytes;
    void* const data;
  };
  static int64_t sum(std::span<const int64_t> counts) {
    int64_t all = 0;
    for (const int64_t count : counts) all += count;
    return all;
  }
  int64_t own(std::span<const int64_t> counts) const { return counts[static_cast<size_t>(rank())]; }
  comm::NcclCollectives& nccl() { return static_cast<comm::NcclCollectives&>(*inner_); }
  Status finish(const Buffer& from, void* to, const Limits& limits) {
    AMXT_TRY(nccl().synchronize(limits));
    from.of.download(to, from.data, from.bytes);
    return {};
  }

  const std::shared_ptr<const Gpu> gpu_;
  const std::unique_ptr<comm::Collectives> inner_;
};

// A communicator of NCCL over one of the host's, each rank on the GPU of its number.
inline Result<std::unique_ptr<comm::NcclCollectives>> make_nccl(
    comm::Group& group, std::shared_ptr<comm::Collectives> host, const Gpu& gpu,
    const comm::Collectives::Limits& limits) {
  comm::NcclCollectives::Options options;
  options.stream = gpu.stream_on(group.rank());
  options.nccl = nccl_under_test();
  options.cuda = cuda_under_test();
  return comm::NcclCollectives::create(group, std::move(host), options, limits);
}

}  // namespace amxt::test
