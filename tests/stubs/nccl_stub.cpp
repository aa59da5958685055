// libnccl.so.2 and libcuda.so.1 for tests, on the memory of the host: the ranks are threads of one process, each communicator has a thread
// that does what was enqueued, in order. It misbehaves when nccl_stub_set() asks for it (see the README of this folder).
//
// Built with NCCL_STUB_OLD it is NCCL 2.10, with NCCL_STUB_PARTIAL it has no ncclReduceScatter.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/bf16.h"

#define STUB extern "C" __attribute__((visibility("default")))
#ifdef NCCL_STUB_PARTIAL
#define ALMOST_STUB extern "C" __attribute__((visibility("hidden")))
#else
#define ALMOST_STUB STUB
#endif

namespace {

enum Result : int {
  kSuccess = 0,
  kCudaError = 1,
  kSystemError = 2,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7
};
enum Type : int { kU8 = 1, kI32 = 2, kI64 = 4, kF16 = 6, kF32 = 7, kBF16 = 9 };
enum Op : int { kSum = 0, kMax = 2, kMin = 3, kAvg = 4 };

struct UniqueId {
  char bytes[128];
};

struct Stream {
  std::atomic<int> pending{0};
};
Stream default_stream;

struct Message {
  std::vector<char> bytes;
};

// What the ranks of one id share.
struct World {
  std::mutex mutex;
  std::condition_variable changed;
  int size = 0;
  int joined = 0;
  bool aborted = false;
  std::vector<const void*> sources;
  int arrived = 0;
  uint64_t meeting = 0;
  std::map<std::pair<int, int>, std::deque<Message>> messages;  // from, to
};

std::mutex stub_mutex;
std::map<std::string, std::shared_ptr<World>> worlds;
std::map<std::string, int> faults;  // what was asked for, and for which rank (-1: all)
std::map<std::string, int> counts;  // what has happened
uint64_t next_id = 1;
thread_local int group_depth = 0;

bool fault(const char* what, int rank) {
  const std::lock_guard lock(stub_mutex);
  const auto found = faults.find(what);
  return found != faults.end() && (found->second < 0 || found->second == rank);
}
void count(const char* what, int by = 1) {
  const std::lock_guard lock(stub_mutex);
  counts[what] += by;
}

size_t width(int type) {
  switch (type) {
    case kU8:
      return 1;
    case kF16:
    case kBF16:
      return 2;
    case kI64:
      return 8;
    default:
      return 4;
  }
}

}  // namespace

struct Comm {
  std::shared_ptr<World> world;
  int rank = 0;
  std::atomic<int> state{kInProgress};
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> queue;
  bool ending = false;
  bool finalized = false;
  std::string last_error;
  std::thread thread;

  void work() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return ending || !queue.empty(); });
        if (queue.empty()) return;
        task = std::move(queue.front());
        queue.pop_front();
      }
      task();
    }
  }
  // True when all ranks have come; false after an abort.
  bool meet(const void* source = nullptr) {
    std::unique_lock lock(world->mutex);
    if (source != nullptr) world->sources[static_cast<size_t>(rank)] = source;
    const uint64_t seen = world->meeting;
    if (++world->arrived == world->size) {
      world->arrived = 0;
      ++world->meeting;
      world->changed.notify_all();
    } else {
      world->changed.wait(lock, [&] { return world->meeting != seen || world->aborted; });
    }
    return !world->aborted;
  }
  std::vector<const void*> sources() {
    const std::lock_guard lock(world->mutex);
    return world->sources;
  }
  int enqueue(void* stream_handle, std::function<bool()> body) {
    if (fault("in_progress", rank)) {
      state = kInProgress;
      return kInProgress;
    }
    if (fault("refuse", rank)) {
      last_error = "the stub refuses";
      return kInvalidUsage;
    }
    Stream* stream =
        stream_handle != nullptr ? static_cast<Stream*>(stream_handle) : &default_stream;
    ++stream->pending;
    const std::lock_guard lock(mutex);
    queue.emplace_back([this, stream, body = std::move(body)] {
      if (fault("stuck", rank)) {
        std::unique_lock waiting(world->mutex);
        world->changed.wait(waiting, [&] { return world->aborted; });
      }
      const bool done = body();
      if (!done || fault("async_error", rank)) {
        last_error = "a peer of the stub is gone";
        state = kRemoteError;
      }
      // What an abort has cut off is never done, as on a GPU.
      if (done) --stream->pending;
    });
    changed.notify_all();
    return kSuccess;
  }
  void end() {
    {
      const std::lock_guard lock(mutex);
      ending = true;
      changed.notify_all();
    }
    if (thread.joinable()) thread.join();
  }
};

namespace {

template <typename T>
void reduce_integers(const std::vector<const void*>& from, size_t count, int op, void* to) {
  using Unsigned = std::make_unsigned_t<T>;
  T* const out = static_cast<T*>(to);
  for (size_t i = 0; i < count; ++i) {
    T value = static_cast<const T*>(from[0])[i];
    for (size_t s = 1; s < from.size(); ++s) {
      const T other = static_cast<const T*>(from[s])[i];
      if (op == kMax) {
        value = std::max(value, other);
      } else if (op == kMin) {
        value = std::min(value, other);
      } else {
        value = static_cast<T>(static_cast<Unsigned>(value) + static_cast<Unsigned>(other));
      }
    }
    out[i] = op == kAvg ? static_cast<T>(value / static_cast<T>(from.size())) : value;
  }
}

template <typename Load, typename Store>
void reduce_floats(const std::vector<const void*>& from, size_t count, int op, Load load,
                   Store store) {
  for (size_t i = 0; i < count; ++i) {
    float value = load(from[0], i);
    for (size_t s = 1; s < from.size(); ++s) {
      const float other = load(from[s], i);
      value = op == kMax   ? std::max(value, other)
              : op == kMin ? std::min(value, other)
                           : value + other;
    }
    store(i, op == kAvg ? value / static_cast<float>(from.size()) : value);
  }
}

void reduce(const std::vector<const void*>& from, size_t count, int type, int op, void* to) {
  const auto halves = [&](auto decode, auto encode) {
    reduce_floats(
        from, count, op,
        [&](const void* data, size_t i) { return decode(static_cast<const uint16_t*>(data)[i]); },
        [&](size_t i, float value) { static_cast<uint16_t*>(to)[i] = encode(value); });
  };
  switch (type) {
    case kU8:
      return reduce_integers<uint8_t>(from, count, op, to);
    case kI32:
      return reduce_integers<int32_t>(from, count, op, to);
    case kI64:
      return reduce_integers<int64_t>(from, count, op, to);
    case kF16:
      return halves([](uint16_t bits) { return _cvtsh_ss(bits); },
                    [](float value) { return static_cast<uint16_t>(_cvtss_sh(value, 0)); });
    case kBF16:
      return halves([](uint16_t bits) { return amxt::to_float(amxt::bf16{bits}); },
                    [](float value) { return amxt::to_bf16(value).bits; });
    default:
      reduce_floats(
          from, count, op,
          [](const void* data, size_t i) { return static_cast<const float*>(data)[i]; },
          [&](size_t i, float value) { static_cast<float*>(to)[i] = value; });
  }
}

std::vector<const void*> moved(std::vector<const void*> sources, size_t bytes) {
  for (const void*& source : sources) source = static_cast<const char*>(source) + bytes;
  return sources;
}

}  // namespace

// What the tests ask for.
STUB void nccl_stub_reset() {
  const std::lock_guard lock(stub_mutex);
  faults.clear();
  counts.clear();
}
STUB void nccl_stub_set(const char* what, int rank) {
  const std::lock_guard lock(stub_mutex);
  faults[what] = rank;
}
STUB int nccl_stub_count(const char* what) {
  const std::lock_guard lock(stub_mutex);
  return counts[what];
}

STUB int ncclGetVersion(int* version) {
#ifdef NCCL_STUB_OLD
  *version = 21003;
#else
  *version = 22005;
#endif
  return kSuccess;
}

STUB const char* ncclGetErrorString(int result) {
  switch (result) {
    case kSuccess:
      return "no error";
    case kSystemError:
      return "unhandled system error";
    case kInvalidUsage:
      return "invalid usage";
    case kRemoteError:
      return "remote process exited or there was a network error";
    case kInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}
STUB const char* ncclGetLastError(Comm* comm) {
  return comm != nullptr ? comm->last_error.c_str() : "";
}

STUB int ncclGetUniqueId(UniqueId* id) {
  if (fault("id_error", -1)) return kSystemError;
  const bool stale = fault("stale_id", -1);
  const std::lock_guard lock(stub_mutex);
  std::memset(id, 0, sizeof *id);
  const uint64_t number = stale ? next_id - 1 : next_id++;
  std::memcpy(id->bytes, &number, sizeof number);
  return kSuccess;
}

struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

STUB int ncclCommInitRankConfig(Comm** made, int ranks, UniqueId id, int rank, Config* config) {
  if (config->magic != 0xcafebeef || config->size < 20 || config->blocking != 0) {
    return kInvalidArgument;
  }
  auto comm = std::make_unique<Comm>();
  comm->rank = rank;
  {
    const std::lock_guard lock(stub_mutex);
    auto& world = worlds[std::string(id.bytes, sizeof id.bytes)];
    if (!world) world = std::make_shared<World>();
    comm->world = world;
    ++counts["made"];
  }
  {
    const std::lock_guard lock(comm->world->mutex);
    comm->world->size = ranks;
    comm->world->sources.resize(static_cast<size_t>(ranks));
  }
  Comm* const own = comm.get();
  comm->queue.emplace_back([own] {
    World& world = *own->world;
    if (fault("init_error", own->rank)) {
      own->last_error = "the stub has no socket";
      own->state = kSystemError;
      return;
    }
    std::unique_lock lock(world.mutex);
    if (!fault("init_stuck", own->rank)) ++world.joined;
    world.changed.notify_all();
    world.changed.wait(lock, [&] { return world.joined >= world.size || world.aborted; });
    own->state = world.aborted ? kRemoteError : kSuccess;
  });
  comm->thread = std::thread([own] { own->work(); });
  *made = comm.release();
  return kInProgress;
}

STUB int ncclCommGetAsyncError(Comm* comm, int* result) {
  *result = comm->state;
  return kSuccess;
}

STUB int ncclCommFinalize(Comm* comm) {
  comm->finalized = true;
  comm->state = kInProgress;
  const std::lock_guard lock(comm->mutex);
  comm->queue.emplace_back([comm] { comm->state = comm->meet() ? kSuccess : kRemoteError; });
  comm->changed.notify_all();
  return kInProgress;
}

STUB int ncclCommDestroy(Comm* comm) {
  if (!comm->finalized) return kInvalidUsage;
  comm->end();
  delete comm;
  count("destroyed");
  return kSuccess;
}

STUB int ncclCommAbort(Comm* comm) {
  if (fault("abort_slow", comm->rank)) std::this_thread::sleep_for(std::chrono::seconds(4));
  {
    const std::lock_guard lock(comm->world->mutex);
    comm->world->aborted = true;
    comm->world->changed.notify_all();
  }
  comm->end();
  delete comm;
  count("aborted");
  return kSuccess;
}

STUB int ncclGroupStart() {
  ++group_depth;
  count("groups");
  return kSuccess;
}
STUB int ncclGroupEnd() { return group_depth-- > 0 ? kSuccess : kInvalidUsage; }

STUB int ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, Comm* comm,
                       void* stream) {
  return comm->enqueue(stream, [=] {
    if (!comm->meet(send)) return false;
    std::vector<char> result(count * width(type));
    reduce(comm->sources(), count, type, op, result.data());
    if (!comm->meet()) return false;  // all have read
    std::memcpy(receive, result.data(), result.size());
    return comm->meet();
  });
}

STUB int ncclReduce(const void* send, void* receive, size_t count, int type, int op, int root,
                    Comm* comm, void* stream) {
  return comm->enqueue(stream, [=] {
    if (!comm->meet(send)) return false;
    std::vector<char> result(count * width(type));
    if (comm->rank == root) reduce(comm->sources(), count, type, op, result.data());
    if (!comm->meet()) return false;
    if (comm->rank == root) std::memcpy(receive, result.data(), result.size());
    return comm->meet();
  });
}

STUB int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root,
                       Comm* comm, void* stream) {
  return comm->enqueue(stream, [=] {
    if (!comm->meet(send)) return false;
    const void* const source = comm->sources()[static_cast<size_t>(root)];
    if (comm->rank != root || send != receive) std::memmove(receive, source, count * width(type));
    return comm->meet();
  });
}

STUB int ncclAllGather(const void* send, void* receive, size_t count, int type, Comm* comm,
                       void* stream) {
  return comm->enqueue(stream, [=] {
    if (!comm->meet(send)) return false;
    const size_t bytes = count * width(type);
    const std::vector<const void*> sources = comm->sources();
    for (size_t r = 0; r < sources.size(); ++r) {
      char* const part = static_cast<char*>(receive) + r * bytes;
      if (part != sources[r]) std::memcpy(part, sources[r], bytes);
    }
    return comm->meet();
  });
}

ALMOST_STUB int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int op,
                                  Comm* comm, void* stream) {
  return comm->enqueue(stream, [=] {
    if (!comm->meet(send)) return false;
    const size_t bytes = count * width(type);
    std::vector<char> result(bytes);
    reduce(moved(comm->sources(), static_cast<size_t>(comm->rank) * bytes), count, type, op,
           result.data());
    if (!comm->meet()) return false;
    std::memcpy(receive, result.data(), bytes);
    return comm->meet();
  });
}

STUB int ncclSend(const void* data, size_t count, int type, int peer, Comm* comm, void* stream) {
  return comm->enqueue(stream, [=] {
    const char* const bytes = static_cast<const char*>(data);
    const std::lock_guard lock(comm->world->mutex);
    comm->world->messages[{comm->rank, peer}].push_back(
        {std::vector<char>(bytes, bytes + count * width(type))});
    comm->world->changed.notify_all();
    return !comm->world->aborted;
  });
}

STUB int ncclRecv(void* data, size_t count, int type, int peer, Comm* comm, void* stream) {
  return comm->enqueue(stream, [=] {
    World& world = *comm->world;
    std::unique_lock lock(world.mutex);
    auto& waiting = world.messages[{peer, comm->rank}];
    world.changed.wait(lock, [&] { return !waiting.empty() || world.aborted; });
    if (waiting.empty()) return false;
    const Message message = std::move(waiting.front());
    waiting.pop_front();
    if (message.bytes.size() != count * width(type)) return false;
    std::memcpy(data, message.bytes.data(), message.bytes.size());
    return true;
  });
}

// --- CUDA -------------------------------------------------------------------------------------

namespace {
thread_local std::vector<void*> contexts;
char the_context;
}  // namespace

// Contexts that the calling thread has pushed.
STUB int nccl_stub_contexts() { return static_cast<int>(contexts.size()); }

STUB int cuInit(unsigned) { return kSuccess; }
STUB int cuGetErrorString(int result, const char** text) {
  *text = result == 101   ? "invalid device ordinal"
          : result == 201 ? "invalid device context"
          : result == 719 ? "unspecified launch failure"
                          : "no error";
  return kSuccess;
}
STUB int cuStreamGetCtx(void* stream, void** context) {
  if (stream == nullptr || fault("no_context", -1)) return 201;
  *context = &the_context;
  return kSuccess;
}
STUB int cuCtxPushCurrent_v2(void* context) {
  contexts.push_back(context);
  return kSuccess;
}
STUB int cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return 201;
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
STUB int cuStreamQuery(void* stream) {
  if (contexts.empty()) return 201;  // the caller forgot the context
  if (fault("stream_error", -1)) return 719;
  const Stream* own = stream != nullptr ? static_cast<Stream*>(stream) : &default_stream;
  return own->pending > 0 ? 600 : kSuccess;
}
STUB int cuStreamCreate(void** stream, unsigned) {
  // Nobody destroys one: they end with the process.
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Stream>> all;
  const std::lock_guard lock(mutex);
  all.push_back(std::make_unique<Stream>());
  *stream = all.back().get();
  return kSuccess;
}
STUB int cuMemAlloc_v2(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory != nullptr ? kSuccess : 2;
}
STUB int cuMemFree_v2(void* memory) {
  std::free(memory);
  return kSuccess;
}
STUB int cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  return kSuccess;
}
STUB int cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
  return kSuccess;
}
STUB int cuDeviceGetCount(int* devices) {
  *devices = 8;
  return kSuccess;
}
STUB int cuDeviceGet(int* device, int ordinal) {
  if (ordinal < 0 || ordinal > 7) return 101;
  *device = ordinal;
  return kSuccess;
}
STUB int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &the_context;
  return kSuccess;
}
STUB int cuStreamDestroy_v2(void* stream) {
  delete static_cast<Stream*>(stream);
  return kSuccess;
}
