// Section 6 of the header: collectives. Each call is turned into work that owns copies of what it was told and runs on the group's engine.
#include <fmt/format.h>

#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "capi/handles.h"

using namespace amxt;
using namespace amxt::capi;

static_assert(static_cast<int32_t>(comm::ReduceOp::kSum) == AMXT_REDUCE_SUM &&
              static_cast<int32_t>(comm::ReduceOp::kMax) == AMXT_REDUCE_MAX &&
              static_cast<int32_t>(comm::ReduceOp::kMin) == AMXT_REDUCE_MIN &&
              static_cast<int32_t>(comm::ReduceOp::kAvg) == AMXT_REDUCE_AVG);

namespace {

using Limits = comm::Collectives::Limits;
using Work = std::function<Status(comm::Collectives& all, const Limits& limits)>;

// A checked call, and where its memory is.
struct Job {
  std::optional<comm::CollectiveCall> call;  // none: not all ranks make it
  Work work;
  bool on_device = false;
  int32_t device = 0;
  comm::CudaStream stream = nullptr;
  int peer = -1;  // of a send or receive, which is `call` then
  bool sends = false;
};

Status refuse(const std::string& why) { return Error(Code::kInvalidArgument, why); }

struct Buffer {
  void* data = nullptr;
  int64_t count = 0;
  DType dtype = DType::kF32;
  bool on_device = false;
  int32_t device = 0;
  comm::CudaStream stream = nullptr;

  // How far the buffer goes; the counts of a call are checked where it is made.
  const std::byte* begin() const { return static_cast<const std::byte*>(data); }
  const std::byte* end() const { return begin() + count * dtype_bytes(dtype); }
};

Result<Buffer> read(const amxt_tensor* tensor, std::string_view name) {
  AMXT_TRY(require(tensor, name));
  AMXT_ASSIGN(const amxt_tensor given,
              read_struct<amxt_tensor>(tensor, AMXT_TENSOR_INIT, "amxt_tensor"));
  if (given.memory != AMXT_MEMORY_HOST && given.memory != AMXT_MEMORY_CUDA)
    return Error(Code::kInvalidArgument, fmt::format("{}.memory is {}", name, given.memory));
  const Buffer buffer{
      given.data,   given.count, static_cast<DType>(given.dtype), given.memory == AMXT_MEMORY_CUDA,
      given.device, given.stream};
  if (given.dtype < 0 || !comm::is_collective_dtype(buffer.dtype)) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{}.dtype is {} ({}), not F32, BF16, F16, I32, I64 or U8", name,
                             given.dtype, amxt_dtype_name(given.dtype)));
  }
  if (given.count < 0 || given.count > INT64_MAX / dtype_bytes(buffer.dtype))
    return Error(Code::kInvalidArgument, fmt::format("{}.count is {}", name, given.count));
  if (given.count > 0 && given.data == nullptr)
    return Error(Code::kInvalidArgument, fmt::format("{}.data is NULL", name));
  return buffer;
}

// A pair of buffers; they may only overlap as `in_place` says.
Status check_pair(const Buffer& send, const Buffer& receive, const std::byte* in_place_send,
                  const std::byte* in_place_receive) {
  if (send.dtype != receive.dtype) {
    return refuse(fmt::format("send is {} and receive is {}", dtype_name(send.dtype),
                              dtype_name(receive.dtype)));
  }
  if (send.on_device != receive.on_device || send.device != receive.device ||
      send.stream != receive.stream)
    return refuse("send and receive are in different memory or on different streams");
  const bool apart = send.end() <= receive.begin() || receive.end() <= send.begin();
  if (apart || (in_place_send != nullptr && in_place_send == in_place_receive)) return {};
  return refuse("send and receive overlap");
}

// The caller's list, or equal parts of `each`.
Result<std::vector<int64_t>> read_counts(const amxt_group& group, const int64_t* counts,
                                         int64_t each, int64_t whole, std::string_view name) {
  std::vector<int64_t> all(static_cast<size_t>(group.size), each);
  if (counts != nullptr) all.assign(counts, counts + group.size);
  int64_t sum = 0;
  for (const int64_t count : all) {
    if (count < 0 || count > INT64_MAX - sum)
      return Error(Code::kInvalidArgument, fmt::format("{} has a count of {}", name, count));
    sum += count;
  }
  if (sum != whole) {
    return Error(Code::kInvalidArgument,
                 fmt::format("the counts of {} sum to {}, and it has {}", name, sum, whole));
  }
  return all;
}

Result<comm::ReduceOp> read_reduce(int32_t reduce) {
  if (reduce < AMXT_REDUCE_SUM || reduce > AMXT_REDUCE_AVG)
    return Error(Code::kInvalidArgument, fmt::format("reduce is {}, not AMXT_REDUCE_*", reduce));
  return static_cast<comm::ReduceOp>(reduce);
}

Status check_rank(const amxt_group& group, int32_t rank, std::string_view name) {
  if (rank >= 0 && rank < group.size) return {};
  return refuse(fmt::format("{} is {}, and the group has {} ranks", name, rank, group.size));
}

Job job(comm::CollectiveCall call, Work work, const Buffer& of) {
  call.on_device = of.on_device;
  return {call, std::move(work), of.on_device, of.device, of.stream};
}

// --- Running ----------------------------------------------------------------------------------

Status check_group(const amxt_group* group) {
  AMXT_TRY(usable(group, "group"));
  if (group->finalized) return Error(Code::kInvalidState, "the group is finalized");
  return {};
}

Result<train::Engine*> engine_of(amxt_group* group) {
  const std::lock_guard lock(group->collectives_mutex);
  if (group->engine == nullptr) {
    AMXT_ASSIGN(group->engine, train::Engine::create());
    group->runtime->add(group->engine.get());
  }
  return group->engine.get();
}

// On the engine: made by the first call that comes to its turn, in the same place on all ranks.
Result<comm::Collectives*> collectives_of(amxt_group* group, const Limits& limits) {
  {
    const std::lock_guard lock(group->collectives_mutex);
    if (group->collectives != nullptr) return group->collectives.get();
  }
  AMXT_ASSIGN(auto made,
              comm::make_collectives(*group->group, {}, group->runtime->log.get(), limits));
  const std::lock_guard lock(group->collectives_mutex);
  group->collectives = std::move(made);
  return group->collectives.get();
}

// The same for device memory: NCCL, over the collectives of the host.
Result<comm::Collectives*> device_collectives_of(amxt_group* group, const Job& what,
                                                 const Limits& limits) {
  AMXT_TRY(collectives_of(group, limits));
  if (group->nccl == nullptr) {
    comm::NcclCollectives::Options options;
    options.stream = what.stream;
    options.device = what.device;
    AMXT_ASSIGN(auto made,
                comm::NcclCollectives::create(*group->group, group->collectives, options, limits));
    const std::lock_guard lock(group->collectives_mutex);
    group->nccl = made.get();
    group->device_collectives = comm::watch_collectives(std::move(made), group->runtime->log.get());
  }
  if (group->nccl->device() != what.device) {
    return Error(Code::kInvalidArgument,
                 fmt::format("the memory is of device {}, and the group uses device {}",
                             what.device, group->nccl->device()));
  }
  group->nccl->use(what.stream);
  return group->device_collectives.get();
}

Status run_on(amxt_group* group, const Job& what, const Limits& limits) {
  AMXT_TRY(group->group->check());  // the others may not know yet that the group has ended
  if (what.on_device) {
    AMXT_ASSIGN(comm::Collectives * all, device_collectives_of(group, what, limits));
    return what.work(*all, limits);
  }
  AMXT_ASSIGN(comm::Collectives * all, collectives_of(group, limits));
  return what.work(*all, limits);
}

Status run_job(amxt_group* group, const Job& what, const Limits& limits) {
  return during(what.call ? what.call->text() : "a collective", run_on(group, what, limits));
}

// In the order of submission.
Result<std::shared_ptr<AlikeCall>> begin(const amxt_group* group, const Job& what, bool blocks) {
  if (!what.call) return std::shared_ptr<AlikeCall>();
  const uint64_t communicator = group->is_part ? group->collectives->number() : 0;
  if (what.peer >= 0) {
    return AlikeCall::begin_letter(group->group, communicator, *what.call, what.peer, what.sends,
                                   blocks);
  }
  return AlikeCall::begin_collective(group->group, communicator, *what.call);
}

Status run(amxt_group* group, const Job& what, Deadline deadline) {
  AMXT_ASSIGN(train::Engine * engine, engine_of(group));
  if (engine->is_current_thread())
    return Error(Code::kInvalidState, "a blocking collective on the thread that runs them");
  AMXT_ASSIGN(const auto alike, begin(group, what, true));
  // The deadline is the collective's own, so that it and not a cancel names who is missing.
  return engine
      ->submit([group, what, deadline](const std::atomic<bool>& cancel) {
        return run_job(group, what, {deadline, &cancel});
      })
      ->wait(Deadline::never());
}

// A call that was cancelled before its turn never ran here, and the others wait for it: they are told as after any cancel.
Status abandon(amxt_group* group, const comm::CollectiveCall& call) {
  const std::atomic<bool> cancel{true};
  AMXT_ASSIGN(comm::Collectives * all, collectives_of(group, {Deadline::never(), &cancel}));
  all->give_up(Error(Code::kCancelled, fmt::format("{} was cancelled", call.text())));
  return {};
}

// A call, checked: at once by a deadline, or as an operation.
Status start(amxt_group* group, Result<Job> what, int64_t timeout_ns, amxt_op** op, bool async) {
  if (!what) return std::move(what).error();
  if (!async) return run(group, *what, Deadline::after(timeout_ns));
  AMXT_TRY(require(op, "op"));
  AMXT_ASSIGN(train::Engine * engine, engine_of(group));
  auto made = std::make_unique<amxt_op>();
  made->engine_thread = engine->thread_id();
  AMXT_ASSIGN(auto alike, begin(group, *what, false));
  const auto ran = std::make_shared<bool>(false);  // touched on the engine alone
  const comm::CollectiveCall call = *what->call;
  made->operation = engine->submit([group, ran, alike = std::move(alike),
                                    body = *std::move(what)](const std::atomic<bool>& cancel) {
    *ran = true;
    return run_job(group, body, {Deadline::never(), &cancel});
  });
  engine->submit([group, ran, call](const std::atomic<bool>&) -> Status {
    if (*ran) return {};
    return abandon(group, call);
  });
  *op = made.release();
  return {};
}

// --- Calls ------------------------------------------------------------------------------------

Result<Job> allreduce(const amxt_group* group, const amxt_tensor* send_tensor,
                      const amxt_tensor* receive_tensor, int32_t reduce) {
  AMXT_TRY(check_group(group));
  AMXT_ASSIGN(const Buffer send, read(send_tensor, "send"));
  AMXT_ASSIGN(const Buffer receive, read(receive_tensor, "receive"));
  AMXT_ASSIGN(const comm::ReduceOp op, read_reduce(reduce));
  AMXT_TRY(check_pair(send, receive, send.begin(), receive.begin()));
  if (send.count != receive.count) {
    return Error(Code::kInvalidArgument,
                 fmt::format("send has {} elements and receive {}", send.count, receive.count));
  }
  return job(
      {"all_reduce", send.dtype, reduce, -1, send.count},
      [=](comm::Collectives& all, const Limits& limits) {
        return all.all_reduce(send.data, receive.data, send.count, send.dtype, op, limits);
      },
      send);
}

Result<Job> allgather(const amxt_group* group, const amxt_tensor* send_tensor,
                      const amxt_tensor* receive_tensor, const int64_t* given_counts) {
  AMXT_TRY(check_group(group));
  AMXT_ASSIGN(const Buffer send, read(send_tensor, "send"));
  AMXT_ASSIGN(const Buffer receive, read(receive_tensor, "receive"));
  AMXT_ASSIGN(const std::vector<int64_t> counts,
              read_counts(*group, given_counts, send.count, receive.count, "receive"));
  const int64_t before = std::accumulate(counts.begin(), counts.begin() + group->rank, int64_t{0});
  if (counts[static_cast<size_t>(group->rank)] != send.count) {
    return Error(Code::kInvalidArgument,
                 fmt::format("send has {} elements, and counts[{}] is {}", send.count, group->rank,
                             counts[static_cast<size_t>(group->rank)]));
  }
  AMXT_TRY(check_pair(send, receive, send.begin(),
                      receive.begin() + before * dtype_bytes(receive.dtype)));
  return job(
      {"all_gather", send.dtype, -1, -1, receive.count},
      [=](comm::Collectives& all, const Limits& limits) {
        return all.all_gather(send.data, receive.data, counts, send.dtype, limits);
      },
      send);
}

Result<Job> reduce_scatter(const amxt_group* group, const amxt_tensor* send_tensor,
                           const amxt_tensor* receive_tensor, const int64_t* given_counts,
                           int32_t reduce) {
  AMXT_TRY(check_group(group));
  AMXT_ASSIGN(const Buffer send, read(send_tensor, "send"));
  AMXT_ASSIGN(const Buffer receive, read(receive_tensor, "receive"));
  AMXT_ASSIGN(const comm::ReduceOp op, read_reduce(reduce));
  AMXT_ASSIGN(const std::vector<int64_t> counts,
              read_counts(*group, given_counts, receive.count, send.count, "send"));
  const int64_t before = std::accumulate(counts.begin(), counts.begin() + group->rank, int64_t{0});
  if (counts[static_cast<size_t>(group->rank)] != receive.count) {
    return Error(Code::kInvalidArgument,
                 fmt::format("receive has {} elements, and counts[{}] is {}", receive.count,
                             group->rank, counts[static_cast<size_t>(group->rank)]));
  }
  AMXT_TRY(
      check_pair(send, receive, send.begin() + before * dtype_bytes(send.dtype), receive.begin()));
  return job(
      {"reduce_scatter", send.dtype, reduce, -1, send.count},
      [=](comm::Collectives& all, const Limits& limits) {
        return all.reduce_scatter(send.data, receive.data, counts, send.dtype, op, limits);
      },
      send);
}

Result<Job> broadcast(const amxt_group* group, const amxt_tensor* tensor, int32_t root) {
  AMXT_TRY(check_group(group));
  AMXT_ASSIGN(const Buffer buffer, read(tensor, "tensor"));
  AMXT_TRY(check_rank(*group, root, "root"));
  return job(
      {"broadcast", buffer.dtype, -1, root, buffer.count},
      [=](comm::Collectives& all, const Limits& limits) {
        return all.broadcast(buffer.data, buffer.count, buffer.dtype, root, limits);
      },
      buffer);
}

Result<Job> alltoall(const amxt_group* group, const amxt_tensor* send_tensor,
                     const int64_t* send_counts, const amxt_tensor* receive_tensor,
                     const int64_t* receive_counts) {
  AMXT_TRY(check_group(group));
  AMXT_ASSIGN(const Buffer send, read(send_tensor, "send"));
  AMXT_ASSIGN(const Buffer receive, read(receive_tensor, "receive"));
  AMXT_TRY(check_pair(send, receive, nullptr, nullptr));
  AMXT_ASSIGN(const std::vector<int64_t> out,
              read_counts(*group, send_counts, send.count / group->size, send.count, "send"));
  AMXT_ASSIGN(
      const std::vector<int64_t> in,
      read_counts(*group, receive_counts, receive.count / group->size, receive.count, "receive"));
  return job(
      {"all_to_all", send.dtype, -1, -1, comm::CollectiveCall::kVaries},
      [=](comm::Collectives& all, const Limits& limits) {
        return all.all_to_all(send.data, out, receive.data, in, send.dtype, limits);
      },
      send);
}

Result<Job> message(const amxt_group* group, const amxt_tensor* tensor, int32_t peer, bool sends) {
  AMXT_TRY(check_group(group));
  AMXT_ASSIGN(const Buffer buffer, read(tensor, "tensor"));
  AMXT_TRY(check_rank(*group, peer, "peer"));
  if (peer == group->rank) {
    return Error(Code::kInvalidArgument, fmt::format("peer is {}, this rank itself", peer));
  }
  Job made = job(
      {sends ? "send" : "receive", buffer.dtype, -1, -1, buffer.count},
      [=](comm::Collectives& all, const Limits& limits) {
        return sends ? all.send(buffer.data, buffer.count, buffer.dtype, peer, limits)
                     : all.receive(buffer.data, buffer.count, buffer.dtype, peer, limits);
      },
      buffer);
  made.peer = peer;
  made.sends = sends;
  return made;
}

Status split(amxt_group* group, int32_t color, int32_t key, int64_t timeout_ns, amxt_group** out) {
  AMXT_TRY(check_group(group));
  AMXT_TRY(require(out, "part"));
  std::unique_ptr<comm::Collectives> made;
  const Work work = [&](comm::Collectives& all, const Limits& limits) -> Status {
    AMXT_ASSIGN(made, all.split(color, key, limits));
    return {};
  };
  AMXT_TRY(
      run(group, Job{comm::CollectiveCall::split(color, key), work}, Deadline::after(timeout_ns)));
  *out = nullptr;
  if (made == nullptr) return {};
  auto part = std::make_unique<amxt_group>();
  part->runtime = group->runtime;
  part->group = group->group;
  part->is_part = true;
  part->rank = made->rank();
  part->size = made->size();
  part->threads = group->threads;
  part->threads_reason = group->threads_reason;
  part->collectives = std::move(made);
  *out = part.release();
  return {};
}

// Of the stream that the last call of device memory was put on.
Status synchronize(amxt_group* group, int64_t timeout_ns) {
  AMXT_TRY(check_group(group));
  {
    const std::lock_guard lock(group->collectives_mutex);
    if (group->engine == nullptr) return {};  // nothing was ever called
  }
  const Work wait = [group](comm::Collectives&, const Limits& limits) {
    return group->nccl != nullptr ? group->nccl->synchronize(limits) : Status();
  };
  return run(group, Job{{}, wait}, Deadline::after(timeout_ns));
}

}  // namespace

namespace amxt::capi {

Status meet_in_part(amxt_group* group, const comm::CollectiveCall& call, int64_t timeout_ns) {
  const Work barrier = [](comm::Collectives& all, const Limits& limits) {
    return all.barrier(limits);
  };
  return run(group, Job{call, barrier}, Deadline::after(timeout_ns));
}

Status leave_devices(amxt_group* group, int64_t timeout_ns) {
  {
    const std::lock_guard lock(group->collectives_mutex);
    if (group->nccl == nullptr) return {};
  }
  const Work leave = [group](comm::Collectives&, const Limits& limits) {
    return group->nccl->is_alive() ? group->nccl->finalize(limits) : Status();
  };
  return run(group, Job{{}, leave}, Deadline::after(timeout_ns));
}

}  // namespace amxt::capi

amxt_group::~amxt_group() {
  if (engine == nullptr) return;
  runtime->remove(engine.get());
  engine.reset();
}

extern "C" {

amxt_status amxt_group_allreduce(amxt_group* group, const amxt_tensor* send,
                                 const amxt_tensor* receive, int32_t reduce, int64_t timeout_ns,
                                 amxt_error* err) {
  return guarded(err, [&] {
    return start(group, allreduce(group, send, receive, reduce), timeout_ns, nullptr, false);
  });
}

amxt_status amxt_group_allreduce_async(amxt_group* group, const amxt_tensor* send,
                                       const amxt_tensor* receive, int32_t reduce, amxt_op** op,
                                       amxt_error* err) {
  return guarded(
      err, [&] { return start(group, allreduce(group, send, receive, reduce), 0, op, true); });
}

amxt_status amxt_group_allgather(amxt_group* group, const amxt_tensor* send,
                                 const amxt_tensor* receive, const int64_t* counts,
                                 int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return start(group, allgather(group, send, receive, counts), timeout_ns, nullptr, false);
  });
}

amxt_status amxt_group_allgather_async(amxt_group* group, const amxt_tensor* send,
                                       const amxt_tensor* receive, const int64_t* counts,
                                       amxt_op** op, amxt_error* err) {
  return guarded(
      err, [&] { return start(group, allgather(group, send, receive, counts), 0, op, true); });
}

amxt_status amxt_group_reduce_scatter(amxt_group* group, const amxt_tensor* send,
                                      const amxt_tensor* receive, const int64_t* counts,
                                      int32_t reduce, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return start(group, reduce_scatter(group, send, receive, counts, reduce), timeout_ns, nullptr,
                 false);
  });
}

amxt_status amxt_group_reduce_scatter_async(amxt_group* group, const amxt_tensor* send,
                                            const amxt_tensor* receive, const int64_t* counts,
                                            int32_t reduce, amxt_op** op, amxt_error* err) {
  return guarded(err, [&] {
    return start(group, reduce_scatter(group, send, receive, counts, reduce), 0, op, true);
  });
}

amxt_status amxt_group_broadcast(amxt_group* group, const amxt_tensor* tensor, int32_t root,
                                 int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return start(group, broadcast(group, tensor, root), timeout_ns, nullptr, false);
  });
}

amxt_status amxt_group_broadcast_async(amxt_group* group, const amxt_tensor* tensor, int32_t root,
                                       amxt_op** op, amxt_error* err) {
  return guarded(err, [&] { return start(group, broadcast(group, tensor, root), 0, op, true); });
}

amxt_status amxt_group_alltoall(amxt_group* group, const amxt_tensor* send,
                                const int64_t* send_counts, const amxt_tensor* receive,
                                const int64_t* receive_counts, int64_t timeout_ns,
                                amxt_error* err) {
  return guarded(err, [&] {
    return start(group, alltoall(group, send, send_counts, receive, receive_counts), timeout_ns,
                 nullptr, false);
  });
}

amxt_status amxt_group_alltoall_async(amxt_group* group, const amxt_tensor* send,
                                      const int64_t* send_counts, const amxt_tensor* receive,
                                      const int64_t* receive_counts, amxt_op** op,
                                      amxt_error* err) {
  return guarded(err, [&] {
    return start(group, alltoall(group, send, send_counts, receive, receive_counts), 0, op, true);
  });
}

amxt_status amxt_group_send(amxt_group* group, const amxt_tensor* tensor, int32_t peer,
                            int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return start(group, message(group, tensor, peer, true), timeout_ns, nullptr, false);
  });
}

amxt_status amxt_group_send_async(amxt_group* group, const amxt_tensor* tensor, int32_t peer,
                                  amxt_op** op, amxt_error* err) {
  return guarded(err,
                 [&] { return start(group, message(group, tensor, peer, true), 0, op, true); });
}

amxt_status amxt_group_recv(amxt_group* group, const amxt_tensor* tensor, int32_t peer,
                            int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] {
    return start(group, message(group, tensor, peer, false), timeout_ns, nullptr, false);
  });
}

amxt_status amxt_group_recv_async(amxt_group* group, const amxt_tensor* tensor, int32_t peer,
                                  amxt_op** op, amxt_error* err) {
  return guarded(err,
                 [&] { return start(group, message(group, tensor, peer, false), 0, op, true); });
}

amxt_status amxt_group_synchronize(amxt_group* group, int64_t timeout_ns, amxt_error* err) {
  return guarded(err, [&] { return synchronize(group, timeout_ns); });
}

amxt_status amxt_group_split(amxt_group* group, int32_t color, int32_t key, int64_t timeout_ns,
                             amxt_group** part, amxt_error* err) {
  return guarded(err, [&] { return split(group, color, key, timeout_ns, part); });
}

}  // extern "C"
