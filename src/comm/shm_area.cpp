#include "comm/shm_area.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/futex.h"
#include "base/text.h"

namespace amxt::comm {
namespace {

constexpr int64_t kSpinNs = 50'000;
constexpr int64_t kLookNs = 100'000'000;       // a sleeping member looks around this often
constexpr int64_t kCancelLookNs = 10'000'000;  // and this often for a cancel
// Of a member. Who fills a slot for round r has seen all others fill theirs for r - 1, and so has passed what they do of r - 4 and before:
// nobody needs to wait until a slot is free.
constexpr int kSlots = 4;
constexpr int64_t kLine = 64;
constexpr int64_t kRingsBytes = int64_t{2} << 20;  // of all pairs together
// Below 64 MiB, from where a group makes all pages of shared memory huge, and so takes them.
constexpr int64_t kPoolBytes = int64_t{48} << 20;
constexpr int64_t kPoolHeadBytes = 4096;
constexpr int kMostAreas = 16;
// Every member reduces all of a small array instead of meeting again for the parts.
constexpr int64_t kSmallBytes = 64 << 10;
// Results of this size go past the caches: they don't fit there anyhow.
constexpr int64_t kStreamBytes = int64_t{1} << 20;

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The bytes of one slot: what P members read of P members in a round should stay in their caches.
int64_t slot_bytes_for(int size) {
  return std::clamp<int64_t>((int64_t{512} << 10) / size / 4096 * 4096, 64 << 10, 256 << 10);
}
int64_t ring_bytes_for(int size) {
  const int64_t pairs = std::max(1, size * (size - 1));
  return std::clamp<int64_t>(kRingsBytes / pairs / kLine * kLine, 4 * kLine, 256 << 10);
}

int64_t overlap(int64_t count, int64_t round, int64_t per_round) {
  return std::clamp<int64_t>(count - round * per_round, 0, per_round);
}

int64_t rounds_for(int64_t most, int64_t per_round) {
  return std::max<int64_t>(1, (most + per_round - 1) / per_round);
}

const std::byte* bytes_at(const void* data, int64_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}
std::byte* bytes_at(void* data, int64_t offset) { return static_cast<std::byte*>(data) + offset; }

void move_bytes(void* to, const void* from, int64_t bytes, bool around = false) {
  if (bytes == 0) return;
  if (around) {
    kernels::stream_copy(to, from, bytes);
  } else {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

bool is_broken(uint64_t gate) { return (gate & 1) != 0; }

// Puts a value somewhere for as long as it lives.
class UnderWay {
 public:
  UnderWay(uint64_t* place, uint64_t number) : place_(place), before_(*place) { *place = number; }
  ~UnderWay() { *place_ = before_; }
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;

 private:
  uint64_t* const place_;
  const uint64_t before_;
};

}  // namespace

Error as_told(const Error& error, int rank) {
  // What the others would find alike, or what ended the group, stays as it is.
  if (error.code() == Code::kCommProtocol || error.code() == Code::kCommPeerLost ||
      error.code() == Code::kCommAborted)
    return error;
  return Error(Code::kCommAborted, fmt::format("rank {} gave up: {}", rank, error.message()))
      .with_rank(rank);
}

const char* reduce_op_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kMin:
      return "min";
    case ReduceOp::kAvg:
      return "avg";
  }
  return "unknown";
}

// --- The pool ---------------------------------------------------------------------------------

struct ShmPool::Head {
  std::atomic<uint32_t> used;  // a bit for each area
};

struct ShmArea::Head {
  alignas(kLine) std::atomic<uint32_t> event;  // advanced for those who sleep
  std::atomic<uint32_t> sleepers;
  std::atomic<int32_t> left;  // members that have gone
  // Twice the number of calls that were passed, and one more when the area is broken: whether a call was passed is decided once for all.
  alignas(kLine) std::atomic<uint64_t> gate;
  std::atomic<uint32_t> has_reason;  // why it is broken
  int32_t code, rank;
  char reason[480];
};

// A call as the members see it: plain memory, names cut.
struct ShmArea::Wire {
  char name[24];
  int32_t dtype, op, root, on_device, color, key;
  int64_t count;
  uint64_t parts, digest;

  static Wire of(const CollectiveCall& call) {
    Wire wire{};
    std::strncpy(wire.name, call.name, sizeof wire.name - 1);
    wire.dtype = static_cast<int32_t>(call.dtype);
    wire.op = call.op;
    wire.root = call.root;
    wire.on_device = call.on_device ? 1 : 0;
    wire.color = call.color;
    wire.key = call.key;
    wire.count = call.count;
    wire.parts = call.parts;
    wire.digest = call.digest();
    return wire;
  }
  bool operator==(const Wire& other) const {
    return digest == other.digest && parts == other.parts;
  }
  std::string text() const {
    const std::string cut(name, strnlen(name, sizeof name));
    CollectiveCall call{cut.c_str(), static_cast<DType>(dtype), op, root, count};
    call.on_device = on_device != 0;
    call.color = color;
    call.key = key;
    return call.text();
  }
};

struct ShmArea::Member {
  alignas(kLine) std::atomic<uint64_t> posted;   // rounds that lie in its slots
  alignas(kLine) std::atomic<uint64_t> reduced;  // rounds whose result lies there too
  alignas(kLine) Wire calls[2];                  // of even and odd calls: nobody is two ahead
};

struct ShmArea::Channel {
  alignas(kLine) std::atomic<uint64_t> written;
  alignas(kLine) std::atomic<uint64_t> read;
};

Result<std::shared_ptr<ShmPool>> ShmPool::create(Group& group, const Limits& limits) {
  std::shared_ptr<ShmPool> pool(new ShmPool(group));
  const int size = group.local_size();
  for (int members = 1; members <= size; ++members)  // a part of the node may take more
    pool->area_bytes_ = std::max(pool->area_bytes_, ShmArea::bytes_for(members));
  pool->areas_ =
      static_cast<int>(std::clamp<int64_t>(kPoolBytes / pool->area_bytes_, 2, kMostAreas));
  AMXT_ASSIGN(
      pool->memory_,
      group.share("collectives", kPoolHeadBytes + pool->areas_ * pool->area_bytes_, limits));
  return pool;
}

Result<int> ShmPool::take() {
  for (int area = 0; area < areas_; ++area) {
    const uint32_t bit = uint32_t{1} << area;
    if ((head()->used.fetch_or(bit) & bit) != 0) continue;
    // Pages that an earlier communicator used are as they were when new.
    std::memset(this->area(area), 0, static_cast<size_t>(area_bytes_));
    return area;
  }
  return Error(
      Code::kLimit,
      fmt::format("{} communicators are open on this node, and there is room for no more", areas_));
}

void ShmPool::give_back(int area) { head()->used.fetch_and(~(uint32_t{1} << area)); }

std::byte* ShmPool::area(int index) const {
  return memory_.data() + kPoolHeadBytes + index * area_bytes_;
}

// --- The area ---------------------------------------------------------------------------------

ShmArea::ShmArea(std::shared_ptr<ShmPool> pool, int area, std::vector<int> ranks, int member,
                 std::function<Status()> alive)
    : pool_(std::move(pool)),
      area_(area),
      base_(pool_->area(area)),
      ranks_(std::move(ranks)),
      member_(member),
      size_(static_cast<int>(ranks_.size())),
      alive_(std::move(alive)) {
  slot_bytes_ = slot_bytes_for(size_);
  ring_bytes_ = ring_bytes_for(size_);
  rings_offset_ = rings_offset_for(size_);
  slots_offset_ = slots_offset_for(size_);
  spins_ = !pool_->group().oversubscribed();
}

int64_t ShmArea::rings_offset_for(int size) {
  return static_cast<int64_t>(sizeof(Head) + static_cast<size_t>(size) * sizeof(Member) +
                              static_cast<size_t>(size) * static_cast<size_t>(size) *
                                  sizeof(Channel));
}
int64_t ShmArea::slots_offset_for(int size) {
  return round_up(rings_offset_for(size) + int64_t{size} * size * ring_bytes_for(size), 4096);
}
int64_t ShmArea::bytes_for(int size) {
  return round_up(slots_offset_for(size) + slot_bytes_for(size) * kSlots * size, 4096);
}

ShmArea::~ShmArea() {
  if (head().left.fetch_add(1) + 1 == size_) pool_->give_back(area_);
}

ShmArea::Head& ShmArea::head() const { return *reinterpret_cast<Head*>(base_); }
ShmArea::Member& ShmArea::at(int member) const {
  return reinterpret_cast<Member*>(base_ + sizeof(Head))[member];
}
ShmArea::Channel& ShmArea::channel(int from, int to) const {
  return reinterpret_cast<Channel*>(
      base_ + sizeof(Head) + size_ * static_cast<int64_t>(sizeof(Member)))[from * size_ + to];
}
std::byte* ShmArea::ring(int from, int to) const {
  return base_ + rings_offset_ + (int64_t{from} * size_ + to) * ring_bytes_;
}
std::byte* ShmArea::slot(int member, uint64_t round) const {
  return base_ + slots_offset_ +
         (int64_t{member} * kSlots + static_cast<int64_t>(round % kSlots)) * slot_bytes_;
}
bool ShmArea::has_passed(uint64_t gate) const { return gate / 2 > current_; }

std::string ShmArea::name(int member) const {
  return fmt::format("rank {}", ranks_[static_cast<size_t>(member)]);
}

Error ShmArea::die(Error error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = std::make_unique<Error>(std::move(error));
  return *error_;
}

Status ShmArea::usable() {
  const std::lock_guard lock(mutex_);
  if (error_) return Error(*error_);
  if (!is_broken(head().gate.load(std::memory_order_acquire))) return {};
  error_ = std::make_unique<Error>(broken());
  return Error(*error_);
}

Error ShmArea::fail(Error error) {
  Head& shared = head();
  uint64_t gate = shared.gate.load();
  while (!is_broken(gate) && !shared.gate.compare_exchange_weak(gate, gate | 1)) {
  }
  return is_broken(gate) ? die(std::move(error)) : explain(std::move(error));
}

// None when the call was passed before: it ends well then.
std::optional<Error> ShmArea::give_up(Error error) {
  Head& shared = head();
  uint64_t gate = shared.gate.load();
  do {
    if (has_passed(gate)) return std::nullopt;
    if (is_broken(gate)) return die(std::move(error));
  } while (!shared.gate.compare_exchange_weak(gate, gate | 1));
  return explain(std::move(error));
}

// By the one member that broke the area.
Error ShmArea::explain(Error error) {
  Head& shared = head();
  const Error told = as_told(error, ranks_[static_cast<size_t>(member_)]);
  shared.code = static_cast<int32_t>(told.code());
  shared.rank = told.rank();
  const size_t length = std::min(told.message().size(), sizeof shared.reason - 1);
  std::memcpy(shared.reason, told.message().data(), length);
  shared.reason[length] = '\0';
  shared.has_reason.store(1);
  shared.event.fetch_add(1);
  futex_wake_all(&shared.event, FutexScope::kShared);
  return die(std::move(error));
}

Error ShmArea::broken() const {
  const Head& shared = head();
  // Who writes the reason may die over it.
  const Deadline patience = Deadline::after(kLookNs);
  while (shared.has_reason.load() == 0 && !patience.passed()) spin_pause();
  if (shared.has_reason.load() == 0)
    return Error(Code::kCommAborted, "another rank gave the communicator up");
  return Error(static_cast<Code>(shared.code), std::string(shared.reason)).with_rank(shared.rank);
}

void ShmArea::wake() {
  Head& shared = head();
  if (shared.sleepers.load() == 0) return;
  shared.event.fetch_add(1);
  futex_wake_all(&shared.event, FutexScope::kShared);
}

void ShmArea::advance(std::atomic<uint64_t>& counter, uint64_t to) {
  counter.store(to);  // sequentially consistent with the load of sleepers: no wake is missed
  wake();
}

Status ShmArea::wait(FunctionRef<bool()> ready, FunctionRef<std::string()> missing,
                     const CollectiveCall& call, const Limits& limits) {
  if (ready()) return {};
  Head& shared = head();
  if (spins_) {
    const int64_t until = monotonic_ns() + kSpinNs;
    do {
      for (int i = 0; i < 32; ++i) {
        if (ready()) return {};
        spin_pause();
      }
    } while (monotonic_ns() < until && !is_broken(shared.gate.load(std::memory_order_relaxed)));
  }
  for (;;) {
    shared.sleepers.fetch_add(1);
    const uint32_t event = shared.event.load();
    const bool done = ready();
    const uint64_t gate = shared.gate.load();
    if (!done && !is_broken(gate)) {
      const Deadline look = Deadline::after(limits.cancel != nullptr ? kCancelLookNs : kLookNs);
      futex_wait(&shared.event, event, FutexScope::kShared, look.earlier(limits.deadline));
    }
    shared.sleepers.fetch_sub(1);
    if (done || ready()) return {};
    if (is_broken(gate) && !has_passed(gate)) return die(broken());
    std::optional<Error> ended;
    if (auto alive = alive_(); !alive) {
      ended = give_up(std::move(alive).error());
    } else if (limits.cancelled()) {
      ended = give_up(Error(Code::kCancelled, fmt::format("{} was cancelled", call.text())));
    } else if (limits.deadline.passed()) {
      ended =
          give_up(Error(Code::kCommTimeout, fmt::format("{} did not end in time: waiting for {}",
                                                        call.text(), missing())));
    }
    if (ended) return *std::move(ended);
  }
}

Status ShmArea::wait_all(std::atomic<uint64_t> Member::* counter, uint64_t target,
                         const CollectiveCall& call, const Limits& limits) {
  int next = 0;
  const auto ready = [&] {
    while (next < size_ && (at(next).*counter).load(std::memory_order_acquire) >= target) ++next;
    return next == size_;
  };
  const auto missing = [&] {
    std::string names;
    for (int m = 0; m < size_; ++m) {
      if ((at(m).*counter).load() < target) names += (names.empty() ? "" : ", ") + name(m);
    }
    return names;
  };
  return wait(ready, missing, call, limits);
}

// All find the same, for all compare with the first member.
Status ShmArea::compare(uint64_t call_number) {
  const Wire& first = at(0).calls[call_number % 2];
  for (int m = 1; m < size_; ++m) {
    const Wire& other = at(m).calls[call_number % 2];
    if (other == first) continue;
    const bool parts_alone = other.digest == first.digest;
    return fail(
        Error(Code::kCommProtocol,
              fmt::format("the ranks disagree: {} calls {}, {} calls {}{}", name(0), first.text(),
                          name(m), other.text(), parts_alone ? " with other counts per rank" : ""))
            .with_rank(ranks_[static_cast<size_t>(m)]));
  }
  return {};
}

// Nobody waits for anyone any more in this call: all pass it, or none does.
Status ShmArea::pass(uint64_t number) {
  uint64_t gate = 2 * number;
  if (head().gate.load(std::memory_order_acquire) == gate) {
    if (head().gate.compare_exchange_strong(gate, gate + 2)) return {};
  } else {
    gate = head().gate.load(std::memory_order_acquire);
  }
  if (has_passed(gate)) return {};
  return die(broken());
}

Status ShmArea::run(const CollectiveCall& call, int64_t rounds, Step copy_in, Step finish,
                    const Step* copy_out, const Limits& limits) {
  AMXT_TRY(usable());
  Member& own = at(member_);
  const uint64_t base = rounds_, number = calls_++;
  const UnderWay under_way(&current_, number);
  own.calls[number % 2] = Wire::of(call);
  // One stage behind the other, so that the wait of one is covered by the work of the others.
  const int64_t stages = copy_out != nullptr ? 2 : 1;
  for (int64_t i = 0; i < rounds + stages; ++i) {
    const uint64_t round = base + static_cast<uint64_t>(i);
    if (i < rounds) {
      copy_in(i);
      advance(own.posted, round + 1);
    }
    if (i >= 1 && i - 1 < rounds) {
      AMXT_TRY(wait_all(&Member::posted, round, call, limits));
      if (i == 1) AMXT_TRY(compare(number));
      if (copy_out == nullptr && i == rounds) AMXT_TRY(pass(number));
      finish(i - 1);
      if (copy_out != nullptr) advance(own.reduced, round);
    }
    if (copy_out != nullptr && i >= 2) {
      AMXT_TRY(wait_all(&Member::reduced, round - 1, call, limits));
      if (i == rounds + 1) AMXT_TRY(pass(number));
      (*copy_out)(i - 2);
    }
  }
  rounds_ = base + static_cast<uint64_t>(rounds);
  if (copy_out == nullptr) own.reduced.store(rounds_);
  return {};
}

Status ShmArea::reduce(const CollectiveCall& call, const void* send, std::span<const Piece> pieces,
                       DType dtype, ReduceOp op, int64_t divisor, void* out, const Limits& limits) {
  const int64_t bytes = dtype_bytes(dtype);
  const int64_t part_bytes = slot_bytes_ / size_ / kLine * kLine;
  const int64_t per_round = part_bytes / bytes;
  int64_t most = 0;
  for (const Piece& piece : pieces) most = std::max(most, piece.count);
  const Piece mine = pieces[static_cast<size_t>(member_)];
  const bool around = mine.count * bytes >= kStreamBytes;
  std::vector<const void*> sources(static_cast<size_t>(size_));

  const auto copy_in = [&](int64_t i) {
    std::byte* const to = slot(member_, rounds_ + static_cast<uint64_t>(i));
    for (int m = 0; m < size_; ++m) {
      if (m == member_) continue;
      const Piece& piece = pieces[static_cast<size_t>(m)];
      move_bytes(to + m * part_bytes, bytes_at(send, (piece.offset + i * per_round) * bytes),
                 overlap(piece.count, i, per_round) * bytes);
    }
  };
  const auto finish = [&](int64_t i) {
    const int64_t count = overlap(mine.count, i, per_round);
    if (count == 0) return;
    for (int m = 0; m < size_; ++m) {
      sources[static_cast<size_t>(m)] =
          m == member_ ? bytes_at(send, (mine.offset + i * per_round) * bytes)
                       : slot(m, rounds_ + static_cast<uint64_t>(i)) + member_ * part_bytes;
    }
    kernels::reduce(dtype, op, sources.data(), size_, divisor, count,
                    bytes_at(out, i * per_round * bytes), around);
  };
  AMXT_TRY(run(call, rounds_for(most, per_round), copy_in, finish, nullptr, limits));
  if (around) kernels::stream_fence();
  return {};
}

Status ShmArea::all_reduce(const CollectiveCall& call, const void* send, void* receive,
                           int64_t count, DType dtype, ReduceOp op, int64_t divisor,
                           const Limits& limits) {
  const int64_t bytes = dtype_bytes(dtype);
  std::vector<const void*> sources(static_cast<size_t>(size_));
  if (count * bytes <= kSmallBytes / size_) {
    const auto copy_in = [&](int64_t) { move_bytes(slot(member_, rounds_), send, count * bytes); };
    const auto finish = [&](int64_t) {
      for (int m = 0; m < size_; ++m) sources[static_cast<size_t>(m)] = slot(m, rounds_);
      if (count > 0) kernels::reduce(dtype, op, sources.data(), size_, divisor, count, receive);
    };
    return run(call, 1, copy_in, finish, nullptr, limits);
  }

  // Equal parts, whole cache lines, the last one shorter.
  const int64_t part_bytes = slot_bytes_ / size_ / kLine * kLine;
  const int64_t per_round = part_bytes / bytes;
  const int64_t share = round_up((count + size_ - 1) / size_, kLine);
  const auto piece = [&](int m) {
    const int64_t offset = std::min(count, m * share);
    return Piece{offset, std::min(share, count - offset)};
  };
  // In place the lines of the result were read a moment ago and are in the cache: to write past it would first have to empty it.
  const bool around = count * bytes >= kStreamBytes && send != receive;
  const auto at_round = [&](int64_t i) { return rounds_ + static_cast<uint64_t>(i); };

  const auto copy_in = [&](int64_t i) {
    for (int m = 0; m < size_; ++m) {
      if (m == member_) continue;
      move_bytes(slot(member_, at_round(i)) + m * part_bytes,
                 bytes_at(send, (piece(m).offset + i * per_round) * bytes),
                 overlap(piece(m).count, i, per_round) * bytes);
    }
  };
  const auto finish = [&](int64_t i) {
    const int64_t n = overlap(piece(member_).count, i, per_round);
    if (n == 0) return;
    const int64_t where = (piece(member_).offset + i * per_round) * bytes;
    for (int m = 0; m < size_; ++m) {
      sources[static_cast<size_t>(m)] =
          m == member_ ? bytes_at(send, where) : slot(m, at_round(i)) + member_ * part_bytes;
    }
    std::byte* const result = slot(member_, at_round(i)) + member_ * part_bytes;
    kernels::reduce(dtype, op, sources.data(), size_, divisor, n, result);
    move_bytes(bytes_at(receive, where), result, n * bytes, around);
  };
  const auto copy_out = [&](int64_t i) {
    for (int m = 0; m < size_; ++m) {
      if (m == member_) continue;
      move_bytes(bytes_at(receive, (piece(m).offset + i * per_round) * bytes),
                 slot(m, at_round(i)) + m * part_bytes,
                 overlap(piece(m).count, i, per_round) * bytes, around);
    }
  };
  const Step last(copy_out);
  AMXT_TRY(run(call, rounds_for(share, per_round), copy_in, finish, &last, limits));
  if (around) kernels::stream_fence();
  return {};
}

Status ShmArea::gather(const CollectiveCall& call, const void* own, void* receive,
                       std::span<const Piece> pieces, int64_t element_bytes, const Limits& limits) {
  const int64_t per_round = slot_bytes_ / element_bytes;
  int64_t most = 0, all = 0;
  for (const Piece& piece : pieces) {
    most = std::max(most, piece.count);
    all += piece.count;
  }
  const bool around = all * element_bytes >= kStreamBytes;
  const Piece mine = pieces[static_cast<size_t>(member_)];
  std::byte* const place = bytes_at(receive, mine.offset * element_bytes);
  const auto copy_in = [&](int64_t i) {
    const int64_t n = overlap(mine.count, i, per_round) * element_bytes;
    const std::byte* const from = bytes_at(own, i * per_round * element_bytes);
    move_bytes(slot(member_, rounds_ + static_cast<uint64_t>(i)), from, n);
    if (own != place) move_bytes(place + i * per_round * element_bytes, from, n, around);
  };
  const auto finish = [&](int64_t i) {
    for (int m = 0; m < size_; ++m) {
      if (m == member_) continue;
      const Piece& piece = pieces[static_cast<size_t>(m)];
      move_bytes(bytes_at(receive, (piece.offset + i * per_round) * element_bytes),
                 slot(m, rounds_ + static_cast<uint64_t>(i)),
                 overlap(piece.count, i, per_round) * element_bytes, around);
    }
  };
  AMXT_TRY(run(call, rounds_for(most, per_round), copy_in, finish, nullptr, limits));
  if (around) kernels::stream_fence();
  return {};
}

Status ShmArea::broadcast(const CollectiveCall& call, void* data, int64_t bytes, int root,
                          const Limits& limits) {
  const bool around = bytes >= kStreamBytes;
  const auto copy_in = [&](int64_t i) {
    if (member_ != root) return;
    move_bytes(slot(root, rounds_ + static_cast<uint64_t>(i)), bytes_at(data, i * slot_bytes_),
               overlap(bytes, i, slot_bytes_));
  };
  const auto finish = [&](int64_t i) {
    if (member_ == root) return;
    move_bytes(bytes_at(data, i * slot_bytes_), slot(root, rounds_ + static_cast<uint64_t>(i)),
               overlap(bytes, i, slot_bytes_), around);
  };
  AMXT_TRY(run(call, rounds_for(bytes, slot_bytes_), copy_in, finish, nullptr, limits));
  if (around) kernels::stream_fence();
  return {};
}

Status ShmArea::all_to_all(const CollectiveCall& call, const void* send, std::span<const Piece> to,
                           void* receive, std::span<const Piece> from, int64_t element_bytes,
                           const Limits& limits) {
  // First the counts: how many rounds there are depends on all of them.
  int64_t most = 0;
  Status agreed;
  const auto tell = [&](int64_t) {
    auto* const counts = reinterpret_cast<int64_t*>(slot(member_, rounds_));
    for (int m = 0; m < size_; ++m) counts[m] = to[static_cast<size_t>(m)].count;
  };
  const auto look = [&](int64_t) {
    for (int m = 0; m < size_; ++m) {
      const auto* const counts = reinterpret_cast<const int64_t*>(slot(m, rounds_));
      for (int j = 0; j < size_; ++j) most = std::max(most, counts[j]);
      const int64_t expected = from[static_cast<size_t>(m)].count;
      if (counts[member_] == expected || !agreed) continue;
      agreed = Error(Code::kCommProtocol,
                     fmt::format("the ranks disagree: in {}, {} sends {} elements to {}, which "
                                 "expects {}",
                                 call.name, name(m), counts[member_], name(member_), expected))
                   .with_rank(ranks_[static_cast<size_t>(m)]);
    }
  };
  AMXT_TRY(run(call, 1, tell, look, nullptr, limits));
  if (!agreed) return fail(std::move(agreed).error());

  const int64_t part_bytes = slot_bytes_ / size_ / kLine * kLine;
  const int64_t per_round = part_bytes / element_bytes;
  const auto copy_in = [&](int64_t i) {
    for (int m = 0; m < size_; ++m) {
      const Piece& piece = to[static_cast<size_t>(m)];
      move_bytes(slot(member_, rounds_ + static_cast<uint64_t>(i)) + m * part_bytes,
                 bytes_at(send, (piece.offset + i * per_round) * element_bytes),
                 overlap(piece.count, i, per_round) * element_bytes);
    }
  };
  const auto finish = [&](int64_t i) {
    for (int m = 0; m < size_; ++m) {
      const Piece& piece = from[static_cast<size_t>(m)];
      move_bytes(bytes_at(receive, (piece.offset + i * per_round) * element_bytes),
                 slot(m, rounds_ + static_cast<uint64_t>(i)) + member_ * part_bytes,
                 overlap(piece.count, i, per_round) * element_bytes);
    }
  };
  return run(call, rounds_for(most, per_round), copy_in, finish, nullptr, limits);
}

Status ShmArea::barrier(const CollectiveCall& call, const Limits& limits) {
  const auto nothing = [](int64_t) {};
  return run(call, 1, nothing, nothing, nullptr, limits);
}

// A message is its call, then its bytes, in a ring of the pair's.
Status ShmArea::send(const CollectiveCall& call, const void* data, int64_t bytes, int peer,
                     const Limits& limits) {
  AMXT_TRY(usable());
  Channel& pair = channel(member_, peer);
  const Wire head = Wire::of(call);
  const auto write = [&](const void* from, int64_t count) -> Status {
    for (int64_t done = 0; done < count;) {
      const uint64_t at = pair.written.load(std::memory_order_relaxed);
      uint64_t taken = 0;
      AMXT_TRY(wait(
          [&] {
            taken = pair.read.load(std::memory_order_acquire);
            return at - taken < static_cast<uint64_t>(ring_bytes_);
          },
          [&] { return name(peer); }, call, limits));
      const auto place = static_cast<int64_t>(at % static_cast<uint64_t>(ring_bytes_));
      const int64_t n = std::min(
          {count - done, ring_bytes_ - static_cast<int64_t>(at - taken), ring_bytes_ - place});
      move_bytes(ring(member_, peer) + place, bytes_at(from, done), n);
      advance(pair.written, at + static_cast<uint64_t>(n));
      done += n;
    }
    return {};
  };
  AMXT_TRY(write(&head, sizeof head));
  return write(data, bytes);
}

Status ShmArea::receive(const CollectiveCall& call, void* data, int64_t bytes, int peer,
                        const Limits& limits) {
  AMXT_TRY(usable());
  Channel& pair = channel(peer, member_);
  const auto read = [&](void* to, int64_t count) -> Status {
    for (int64_t done = 0; done < count;) {
      const uint64_t at = pair.read.load(std::memory_order_relaxed);
      uint64_t written = 0;
      AMXT_TRY(wait(
          [&] {
            written = pair.written.load(std::memory_order_acquire);
            return written > at;
          },
          [&] { return name(peer); }, call, limits));
      const auto place = static_cast<int64_t>(at % static_cast<uint64_t>(ring_bytes_));
      const int64_t n =
          std::min({count - done, static_cast<int64_t>(written - at), ring_bytes_ - place});
      move_bytes(bytes_at(to, done), ring(peer, member_) + place, n);
      advance(pair.read, at + static_cast<uint64_t>(n));
      done += n;
    }
    return {};
  };
  Wire head{};
  AMXT_TRY(read(&head, sizeof head));
  if (head.count != call.count || head.dtype != static_cast<int32_t>(call.dtype)) {
    return fail(Error(Code::kCommProtocol,
                      fmt::format("the ranks disagree: {} calls {} to {}, which calls {}",
                                  name(peer), head.text(), name(member_), call.text()))
                    .with_rank(ranks_[static_cast<size_t>(peer)]));
  }
  return read(data, bytes);
}

}  // namespace amxt::comm
