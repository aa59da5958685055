#include "comm/nccl_collectives.h"

#include <fmt/format.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>

#include "comm/group_collectives.h"
#include "comm/quiet_thread.h"
#include "comm/shm_area.h"

namespace amxt::comm {
namespace {

// How long an abort may take before it is left to itself: NCCL joins threads in it.
constexpr int64_t kAbortNs = 2'000'000'000;

// NCCL tells nobody when something is done: it must be asked. Often at first, at most every 2 ms.
class Patience {
 public:
  void wait() {
    const timespec time{0, ns_};
    nanosleep(&time, nullptr);
    ns_ = std::min<long>(2 * ns_, 2'000'000);
  }

 private:
  long ns_ = 20'000;
};

template <size_t size>
void put_text(char (&to)[size], std::string_view text) {
  const size_t length = std::min(text.size(), size - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

template <size_t size>
std::string get_text(const char (&from)[size]) {
  return std::string(from, strnlen(from, size));
}

// Everyone's T, by rank, at the start of NCCL: with the first call in device memory.
template <typename T>
Result<std::vector<T>> first_exchange(Collectives& host, const T& own,
                                      const Collectives::Limits& limits) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> all(static_cast<size_t>(host.size()));
  CollectiveCall call{"the first call"};
  call.on_device = true;
  AMXT_TRY(host.exchange(call, &own, all.data(), sizeof own, limits));
  return all;
}

// True for the first time. An id that comes again is of a communicator that may still be there: its ranks and ours would meet.
bool is_new_id(const NcclUniqueId& id) {
  static std::mutex mutex;
  static auto* const seen = new std::set<std::string>();
  const std::lock_guard lock(mutex);
  return seen->emplace(id.bytes, sizeof id.bytes).second;
}

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

bool all_equal(std::span<const int64_t> counts) {
  return std::all_of(counts.begin(), counts.end(),
                     [&](int64_t count) { return count == counts.front(); });
}

const std::byte* at(const void* data, int64_t elements, DType dtype) {
  return static_cast<const std::byte*>(data) + elements * dtype_bytes(dtype);
}
std::byte* at(void* data, int64_t elements, DType dtype) {
  return static_cast<std::byte*>(data) + elements * dtype_bytes(dtype);
}

}  // namespace

struct NcclCollectives::Call {
  char name[16] = {};
  int32_t dtype = -1;
  int32_t op = -1;
  int32_t root = -1;
  int32_t reserved = 0;
  int64_t count = CollectiveCall::kNone;
  uint64_t parts = 0;  // hash of the counts of all ranks

  Call(std::string_view what, int64_t elements, DType type) : count(elements) {
    put_text(name, what);
    dtype = static_cast<int32_t>(type);
  }
  Call() = default;

  // `name` lives in this one.
  CollectiveCall as_collective() const {
    return {name, static_cast<DType>(dtype), op, root, count, parts};
  }
  CollectiveCall on_device() const {
    CollectiveCall call = as_collective();
    call.on_device = true;
    return call;
  }
  std::string text() const { return as_collective().text(); }
};

struct NcclCollectives::Offer {
  int32_t code = 0;  // of what went wrong here, else 0
  uint32_t attempt = 0;
  int32_t version = 0;
  uint8_t nonce[16] = {};  // from rank 0, with the id
  NcclUniqueId id = {};
  char error[512] = {};
};

struct NcclCollectives::State {
  int32_t code = 0;
  int32_t ready = 0;
  uint8_t nonce[16] = {};  // which offer this rank started from
  char error[512] = {};
};

Result<std::unique_ptr<NcclCollectives>> NcclCollectives::create(Group& group,
                                                                 std::shared_ptr<Collectives> host,
                                                                 const Options& options,
                                                                 const Limits& limits) {
  std::unique_ptr<NcclCollectives> made(new NcclCollectives(group, std::move(host), options));
  AMXT_TRY(made->start(limits));
  return made;
}

NcclCollectives::~NcclCollectives() { end_communicator(); }

// What this rank needs for itself.
Status NcclCollectives::open() {
  AMXT_ASSIGN(nccl_, open_nccl(nccl_name_));
  AMXT_ASSIGN(cuda_, open_cuda(cuda_name_));
  AMXT_ASSIGN(context_, cuda_->context_of(stream_, device_));
  return {};
}

Status NcclCollectives::start(const Limits& limits) {
  const Status own = open();
  AMXT_ASSIGN(const NcclUniqueId id, agree_on_id(own, limits));
  return connect(id, limits);
}

// Rank 0 makes the id. It travels with a number drawn for this start and with the number of the attempt, over a channel that belongs to
// this group alone: an id of an earlier start, or of another group, is never used.
Result<NcclUniqueId> NcclCollectives::agree_on_id(const Status& own, const Limits& limits) {
  Offer offer;
  offer.attempt = attempt_;
  Status made;
  if (!own) {
    made = Error(own.error().code(), named(own.error().message()));
  } else {
    offer.version = nccl_->version_code;
    if (rank() == 0) {
      const CudaContextScope scope(*cuda_, context_);
      const NcclResult result = nccl_->GetUniqueId(&offer.id);
      if (result != kNcclSuccess) {
        made = from_nccl("ncclGetUniqueId", result);
      } else if (!is_new_id(offer.id)) {
        const char* fixed = std::getenv("NCCL_COMM_ID");
        made = Error(Code::kInvalidState,
                     named(fmt::format("ncclGetUniqueId gave an id that was used before{}",
                                       fixed != nullptr ? " (NCCL_COMM_ID is set)" : "")));
      } else if (getrandom(offer.nonce, sizeof offer.nonce, 0) != sizeof offer.nonce) {
        made = Error(Code::kIo, named("getrandom failed"));
      }
    }
  }
  if (!made) {
    offer.code = static_cast<int32_t>(made.error().code());
    put_text(offer.error, made.error().message());
  }
  AMXT_ASSIGN(const std::vector<Offer> all, first_exchange(*host_, offer, limits));
  for (int r = 0; r < size(); ++r) {
    const Offer& other = all[static_cast<size_t>(r)];
    if (other.code != 0) {
      return Error(static_cast<Code>(other.code), get_text(other.error)).with_rank(r);
    }
  }
  for (int r = 1; r < size(); ++r) {
    const Offer &first = all.front(), &other = all[static_cast<size_t>(r)];
    if (other.attempt != first.attempt) {
      return Error(Code::kCommProtocol,
                   fmt::format("the ranks disagree: rank 0 starts communicator {} of NCCL, rank {} "
                               "starts {}",
                               first.attempt, r, other.attempt))
          .with_rank(r);
    }
    if (other.version / 100 != first.version / 100) {
      const auto version = [](int32_t code) {
        Nccl nccl{};
        nccl.version_code = code;
        return nccl.version();
      };
      return Error(Code::kMismatch, fmt::format("rank 0 has NCCL {}, rank {} has {}",
                                                version(first.version), r, version(other.version)))
          .with_rank(r);
    }
  }
  std::copy(std::begin(all.front().nonce), std::end(all.front().nonce), nonce_.begin());
  return all.front().id;
}

// Why this rank's start ends here; `ready` is set when it is through.
std::optional<Error> NcclCollectives::connecting_error(const Limits& limits, bool* ready) {
  NcclResult result = kNcclSuccess;
  const NcclResult asked = nccl_->CommGetAsyncError(comm_, &result);
  if (asked != kNcclSuccess && asked != kNcclInProgress) result = asked;
  *ready = result == kNcclSuccess;
  if (!*ready && result != kNcclInProgress) return from_nccl("connecting", result);
  if (*ready) return {};
  if (Status stop = interrupted("connecting", limits); !stop) return std::move(stop).error();
  return {};
}

// All ranks look at NCCL for themselves and tell the others, until all are through or one is not: nobody waits for a rank that has failed.
Status NcclCollectives::connect(const NcclUniqueId& id, const Limits& limits) {
  NcclConfig config;
  std::optional<Error> failed;
  {
    const CudaContextScope scope(*cuda_, context_);
    const NcclResult result = nccl_->CommInitRankConfig(&comm_, size(), id, rank(), &config);
    if (result != kNcclSuccess && result != kNcclInProgress) {
      failed = from_nccl("ncclCommInitRankConfig", result);
    }
  }
  // The ranks' deadlines may differ a little; the word of the first one that passes must still get to the others.
  const auto told = Limits{
      Deadline::after(limits.deadline.is_never()
                          ? -1
                          : std::min(limits.deadline.left_ns(), INT64_MAX / 2) + 10'000'000'000)};
  Patience patience;
  for (;;) {
    State own;
    bool ready = false;
    if (!failed) failed = connecting_error(limits, &ready);
    own.ready = ready;
    std::copy(nonce_.begin(), nonce_.end(), std::begin(own.nonce));
    if (failed) {
      own.code = static_cast<int32_t>(failed->code());
      put_text(own.error, failed->message());
    }
    auto exchanged = first_exchange(*host_, own, told);
    if (!exchanged) {
      end_communicator();
      return std::move(exchanged).error();
    }
    bool all_ready = true;
    for (int r = 0; r < size(); ++r) {
      const State& other = (*exchanged)[static_cast<size_t>(r)];
      std::optional<Error> reason;
      if (other.code != 0) {
        // What was cancelled there was not cancelled here.
        const bool elsewhere = r != rank() && static_cast<Code>(other.code) == Code::kCancelled;
        reason = Error(elsewhere ? Code::kCommAborted : static_cast<Code>(other.code),
                       get_text(other.error));
      } else if (std::memcmp(other.nonce, nonce_.data(), nonce_.size()) != 0) {
        reason = Error(Code::kCommProtocol,
                       fmt::format("rank {} started NCCL from another id than rank {}", r, rank()));
      }
      if (reason) {
        end_communicator();
        return std::move(*reason).with_rank(r);
      }
      all_ready &= other.ready != 0;
    }
    if (all_ready) return {};
    patience.wait();
  }
}

Error NcclCollectives::from_nccl(const std::string& what, NcclResult result) const {
  constexpr NcclResult kRemoteError = 6, kTimeoutResult = 8;
  const Code code = result == kRemoteError     ? Code::kCommPeerLost
                    : result == kTimeoutResult ? Code::kCommTimeout
                                               : Code::kCommAborted;
  return Error(code, named(fmt::format("{}: {}", what, nccl_->text(result, comm_))))
      .with_rank(rank());
}

std::string NcclCollectives::named(const std::string& text) const {
  return fmt::format("NCCL on rank {}: {}", rank(), text);
}

Status NcclCollectives::usable() const {
  if (dead_) return Error(dead_->code(), dead_->message()).with_rank(dead_->rank());
  return group_.check();
}

// Why this rank does not wait any longer, if so.
Status NcclCollectives::interrupted(const std::string& what, const Limits& limits) const {
  AMXT_TRY(group_.check());
  if (limits.cancel != nullptr && limits.cancel->load(std::memory_order_relaxed)) {
    return Error(Code::kCancelled, named(what + " was cancelled"));
  }
  if (limits.deadline.passed()) {
    return Error(Code::kCommTimeout, named(what + " is still in progress at the deadline"))
        .with_rank(rank());
  }
  return {};
}

Error NcclCollectives::fail(Error error) {
  if (!dead_) dead_ = Error(error.code(), error.message()).with_rank(error.rank());
  end_communicator();
  host_->give_up(Error(dead_->code(), dead_->message()).with_rank(dead_->rank()));
  return Error(dead_->code(), dead_->message()).with_rank(dead_->rank());
}

// From another thread, for it may take its time: a kernel that still runs is asked to quit, threads are joined.
void NcclCollectives::end_communicator() {
  const NcclComm comm = std::exchange(comm_, nullptr);
  if (comm == nullptr) return;
  struct Progress {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  const auto progress = std::make_shared<Progress>();
  auto thread = start_quiet_thread(
      "nccl abort", [nccl = nccl_, cuda = cuda_, context = context_, comm, progress] {
        {
          const CudaContextScope scope(*cuda, context);
          nccl->CommAbort(comm);
        }
        const std::lock_guard lock(progress->mutex);
        progress->done = true;
        progress->changed.notify_all();
      });
  if (!thread) {  // no thread left: what is held is lost, which is better than to wait for ever
    return;
  }
  thread->detach();
  std::unique_lock lock(progress->mutex);
  progress->changed.wait_for(lock, std::chrono::nanoseconds(kAbortNs),
                             [&] { return progress->done; });
}

// All ranks come here with the same call, or none of them goes on.
Status NcclCollectives::agree(const Call& call, const Limits& limits) {
  AMXT_TRY(usable());
  if (Status same = host_->exchange(call.on_device(), nullptr, nullptr, 0, limits); !same) {
    return fail(std::move(same).error());
  }
  return {};
}

Status NcclCollectives::agree_counts(DType dtype, std::span<const int64_t> send,
                                     std::span<const int64_t> receive, const Limits& limits) {
  const auto world = static_cast<size_t>(size());
  std::vector<int64_t> own(send.begin(), send.end());
  own.insert(own.end(), receive.begin(), receive.end());
  std::vector<int64_t> all(2 * world * world);
  Call call("all_to_all", CollectiveCall::kVaries, dtype);
  if (Status status = host_->exchange(call.on_device(), own.data(), all.data(),
                                      static_cast<int64_t>(own.size() * sizeof(int64_t)), limits);
      !status) {
    return fail(std::move(status).error());
  }
  for (size_t from = 0; from < world; ++from) {
    for (size_t to = 0; to < world; ++to) {
      const int64_t sent = all[2 * world * from + to];
      const int64_t expected = all[2 * world * to + world + from];
      if (sent == expected) continue;
      return fail(Error(Code::kCommProtocol,
                        fmt::format("the ranks disagree: rank {} sends {} elements to rank {}, "
                                    "which expects {}",
                                    from, sent, to, expected))
                      .with_rank(static_cast<int32_t>(from)));
    }
  }
  return {};
}

// Polls until NCCL has taken what was enqueued; errors of what is under way show here too.
Status NcclCollectives::settle(const std::string& what, NcclResult result, const Limits& limits) {
  Patience patience;
  for (;;) {
    if (result != kNcclSuccess && result != kNcclInProgress) return fail(from_nccl(what, result));
    const NcclResult asked = nccl_->CommGetAsyncError(comm_, &result);
    if (asked != kNcclSuccess && asked != kNcclInProgress) return fail(from_nccl(what, asked));
    if (result == kNcclSuccess) return {};
    if (result != kNcclInProgress) continue;
    if (Status stop = interrupted(what, limits); !stop) return fail(std::move(stop).error());
    patience.wait();
  }
}

template <typename Body>
Status NcclCollectives::enqueue(const Call& call, const Limits& limits, Body&& body) {
  NcclResult result = kNcclSuccess;
  {
    const CudaContextScope scope(*cuda_, context_);
    result = body();
  }
  return settle(call.text(), result, limits);
}

// Several calls as one, as NCCL wants it for sends and receives that depend on each other.
template <typename Body>
NcclResult NcclCollectives::grouped(Body&& body) {
  NcclResult result = nccl_->GroupStart();
  if (result != kNcclSuccess) return result;
  const auto add = [&](NcclResult added) {
    if (result == kNcclSuccess && added != kNcclInProgress) result = added;
  };
  body(add);
  const NcclResult ended = nccl_->GroupEnd();
  return result != kNcclSuccess ? result : ended;
}

Status NcclCollectives::synchronize(const Limits& limits) {
  AMXT_TRY(usable());
  Patience patience;
  for (;;) {
    int busy = Cuda::kSuccess;
    {
      const CudaContextScope scope(*cuda_, context_);
      busy = cuda_->StreamQuery(stream_);
    }
    if (busy != Cuda::kSuccess && busy != Cuda::kNotReady) {
      return fail(Error(Code::kCommAborted, fmt::format("the CUDA stream of rank {} failed: {}",
                                                        rank(), cuda_->text(busy))));
    }
    AMXT_TRY(settle("the stream", kNcclSuccess, limits));
    if (busy == Cuda::kSuccess) return {};
    if (Status stop = interrupted("the stream", limits); !stop) {
      return fail(std::move(stop).error());
    }
    patience.wait();
  }
}

Status NcclCollectives::finalize(const Limits& limits) {
  AMXT_TRY(barrier(limits));
  NcclResult result = kNcclSuccess;
  {
    const CudaContextScope scope(*cuda_, context_);
    result = nccl_->CommFinalize(comm_);
  }
  AMXT_TRY(settle("finalize", result, limits));
  const CudaContextScope scope(*cuda_, context_);
  const NcclComm comm = std::exchange(comm_, nullptr);
  dead_ = Error(Code::kInvalidState, "the communicator of NCCL was finalized");
  result = nccl_->CommDestroy(comm);
  if (result != kNcclSuccess && result != kNcclInProgress) {
    return Error(Code::kCommAborted,
                 fmt::format("ncclCommDestroy: {}", nccl_->text(result, nullptr)));
  }
  return {};
}

Status NcclCollectives::all_reduce(const void* send, void* receive, int64_t count, DType dtype,
                                   ReduceOp op, const Limits& limits) {
  Call call("all_reduce", count, dtype);
  call.op = static_cast<int32_t>(op);
  AMXT_TRY(agree(call, limits));
  if (count == 0) return {};
  return enqueue(call, limits, [&] {
    return nccl_->AllReduce(send, receive, static_cast<size_t>(count), nccl_type(dtype),
                            nccl_op(op), comm_, stream_);
  });
}

Status NcclCollectives::all_gather(const void* send, void* receive, std::span<const int64_t> counts,
                                   DType dtype, const Limits& limits) {
  Call call("all_gather", sum_of(counts), dtype);
  call.parts = hash_of(counts);
  AMXT_TRY(agree(call, limits));
  if (call.count == 0) return {};
  return enqueue(call, limits, [&] {
    const int type = nccl_type(dtype);
    if (all_equal(counts)) {
      return nccl_->AllGather(send, receive, static_cast<size_t>(counts.front()), type, comm_,
                              stream_);
    }
    // NCCL gathers equal parts only.
    return grouped([&](auto add) {
      int64_t offset = 0;
      for (int r = 0; r < size(); ++r) {
        const int64_t count = counts[static_cast<size_t>(r)];
        std::byte* const part = at(receive, offset, dtype);
        offset += count;
        if (count == 0) continue;
        add(nccl_->Broadcast(r == rank() ? send : part, part, static_cast<size_t>(count), type, r,
                             comm_, stream_));
      }
    });
  });
}

Status NcclCollectives::reduce_scatter(const void* send, void* receive,
                                       std::span<const int64_t> counts, DType dtype, ReduceOp op,
                                       const Limits& limits) {
  Call call("reduce_scatter", sum_of(counts), dtype);
  call.op = static_cast<int32_t>(op);
  call.parts = hash_of(counts);
  AMXT_TRY(agree(call, limits));
  if (call.count == 0) return {};
  return enqueue(call, limits, [&] {
    const int type = nccl_type(dtype);
    if (all_equal(counts)) {
      return nccl_->ReduceScatter(send, receive, static_cast<size_t>(counts.front()), type,
                                  nccl_op(op), comm_, stream_);
    }
    return grouped([&](auto add) {
      int64_t offset = 0;
      for (int r = 0; r < size(); ++r) {
        const int64_t count = counts[static_cast<size_t>(r)];
        const std::byte* const part = at(send, offset, dtype);
        offset += count;
        if (count == 0) continue;
        add(nccl_->Reduce(part, r == rank() ? receive : nullptr, static_cast<size_t>(count), type,
                          nccl_op(op), r, comm_, stream_));
      }
    });
  });
}

Status NcclCollectives::broadcast(void* data, int64_t count, DType dtype, int root,
                                  const Limits& limits) {
  Call call("broadcast", count, dtype);
  call.root = root;
  AMXT_TRY(agree(call, limits));
  if (count == 0) return {};
  return enqueue(call, limits, [&] {
    return nccl_->Broadcast(data, data, static_cast<size_t>(count), nccl_type(dtype), root, comm_,
                            stream_);
  });
}

Status NcclCollectives::all_to_all(const void* send, std::span<const int64_t> send_counts,
                                   void* receive, std::span<const int64_t> receive_counts,
                                   DType dtype, const Limits& limits) {
  const Call call("all_to_all", CollectiveCall::kVaries, dtype);
  AMXT_TRY(agree(call, limits));
  AMXT_TRY(agree_counts(dtype, send_counts, receive_counts, limits));
  return enqueue(call, limits, [&] {
    return grouped([&](auto add) {
      int64_t out = 0, in = 0;
      for (int r = 0; r < size(); ++r) {
        const int64_t to = send_counts[static_cast<size_t>(r)];
        const int64_t from = receive_counts[static_cast<size_t>(r)];
        if (to > 0) {
          add(nccl_->Send(at(send, out, dtype), static_cast<size_t>(to), nccl_type(dtype), r, comm_,
                          stream_));
        }
        if (from > 0) {
          add(nccl_->Recv(at(receive, in, dtype), static_cast<size_t>(from), nccl_type(dtype), r,
                          comm_, stream_));
        }
        out += to;
        in += from;
      }
    });
  });
}

Status NcclCollectives::send(const void* data, int64_t count, DType dtype, int peer,
                             const Limits& limits) {
  AMXT_TRY(usable());
  const Call call("send", count, dtype);
  if (Status told = host_->send(&call, sizeof call, DType::kU8, peer, limits); !told) {
    return fail(std::move(told).error());
  }
  if (count == 0) return {};
  return enqueue(call, limits, [&] {
    return nccl_->Send(data, static_cast<size_t>(count), nccl_type(dtype), peer, comm_, stream_);
  });
}

Status NcclCollectives::receive(void* data, int64_t count, DType dtype, int peer,
                                const Limits& limits) {
  AMXT_TRY(usable());
  const Call call("receive", count, dtype);
  Call sent;
  if (Status heard = host_->receive(&sent, sizeof sent, DType::kU8, peer, limits); !heard) {
    return fail(std::move(heard).error());
  }
  if (sent.count != count || sent.dtype != call.dtype) {
    return fail(Error(Code::kCommProtocol,
                      fmt::format("the ranks disagree: rank {} calls {}, rank {} calls {}", peer,
                                  sent.text(), rank(), call.text()))
                    .with_rank(peer));
  }
  if (count == 0) return {};
  return enqueue(call, limits, [&] {
    return nccl_->Recv(data, static_cast<size_t>(count), nccl_type(dtype), peer, comm_, stream_);
  });
}

Status NcclCollectives::barrier(const Limits& limits) {
  Call call;
  put_text(call.name, "barrier");
  AMXT_TRY(synchronize(limits));
  return agree(call, limits);
}

Result<std::unique_ptr<Collectives>> NcclCollectives::split(int color, int key,
                                                            const Limits& limits) {
  AMXT_TRY(usable());
  AMXT_ASSIGN(std::shared_ptr<Collectives> host, host_->split(color, key, limits));
  const uint32_t attempt = ++splits_;
  if (host == nullptr) return std::unique_ptr<Collectives>();
  Options options;
  options.stream = stream_;
  options.device = device_;
  options.attempt = attempt;
  options.nccl = nccl_name_;
  options.cuda = cuda_name_;
  AMXT_ASSIGN(auto made, create(group_, std::move(host), options, limits));
  return std::unique_ptr<Collectives>(std::move(made));
}

}  // namespace amxt::comm
