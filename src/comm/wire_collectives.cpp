#include "comm/wire_collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/rows.h"

namespace amxt::comm {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;      // of a reduction: it stays in the caches
constexpr int kDepth = 4;                              // chunks of each peer under way
constexpr int64_t kSmallBytes = int64_t{32} << 10;     // whole to everyone
constexpr int64_t kBroadcastBytes = int64_t{4} << 20;  // before the node's others get it
constexpr int64_t kAlign = 64;                         // elements: parts begin at cache lines
constexpr uint32_t kStepBits = 24;
constexpr uint32_t kEnter = (1u << kStepBits) - 1, kGather = 1u << (kStepBits - 1);

std::byte* at(void* data, int64_t offset) { return static_cast<std::byte*>(data) + offset; }
const std::byte* at(const void* data, int64_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

int64_t sum(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// `count` elements over `parts`, all but the last ones equal.
ShmArea::Piece even_part(int64_t count, int64_t parts, int64_t index) {
  const int64_t share = ((count + parts - 1) / parts + kAlign - 1) / kAlign * kAlign;
  const int64_t offset = std::min(count, index * share);
  return {offset, std::min(share, count - offset)};
}

// Partial sums of a node stay partial; the last level divides.
ReduceOp partial(ReduceOp op) { return op == ReduceOp::kAvg ? ReduceOp::kSum : op; }

// A call as nodes tell each other.
struct Entry {
  uint64_t digest = 0, parts = 0;
  bool disagreed = false;  // ranks of the node did, as the text says
  std::array<char, 487> text{};

  void set(const std::string& words) {
    std::memcpy(text.data(), words.data(), std::min(words.size(), text.size() - 1));
  }
};

}  // namespace

struct WireCollectives::Job {
  const Limits& limits;
  std::vector<Wire::Pending> flights;
  std::vector<std::vector<std::byte>> memory;
  std::vector<Entry> entries;
};

WireCollectives::WireCollectives(std::shared_ptr<Communication> shared, Membership members,
                                 std::unique_ptr<ShmArea> area, std::vector<std::vector<int>> nodes,
                                 int node)
    : GroupCollectives(std::move(shared), std::move(members)),
      area_(std::move(area)),
      nodes_(std::move(nodes)),
      node_(node),
      name_([this] {
        const bool flat = std::all_of(nodes_.begin(), nodes_.end(),
                                      [](const auto& there) { return there.size() == 1; });
        return std::string(flat ? "" : "shm+") + shared_->wire->name();
      }()),
      is_flat_(name_ == shared_->wire->name()),
      sent_(ranks_.size()),
      received_(ranks_.size()) {}

// --- Calls ------------------------------------------------------------------------------------

template <typename Body>
Status WireCollectives::guarded(const Limits& limits, Body&& body) {
  AMXT_TRY(area_->usable());
  Job job{limits, {}, {}, {}};
  Status status = body(job);
  if (status) return {};
  Error error = area_->fail(std::move(status).error());
  // Before the job's memory and the caller's go. What all ranks found alike, with nothing under way,
  // leaves the wire to other communicators.
  if (error.code() != Code::kCommProtocol || !job.flights.empty()) {
    const Error told = as_told(error, ranks_[static_cast<size_t>(rank())]);
    shared_->wire->close(&told);
  }
  return error;
}

uint64_t WireCollectives::tag(int receiver, uint32_t step) const {
  return ((ids_[static_cast<size_t>(receiver)] & 0x7FFF) << 48) |
         ((calls_ & 0xFFFFFF) << kStepBits) | step;
}

uint64_t WireCollectives::message_tag(int receiver, uint64_t ordinal) const {
  return uint64_t{1} << 63 | (ids_[static_cast<size_t>(receiver)] & 0x7FFF) << 48 |
         (ordinal & 0x7FFFFFFFFFFF) << 1;
}

Status WireCollectives::wait(Job& job, Wire::Transfer& transfer) {
  Status ended = shared_->wire->wait(transfer, job.limits.deadline, job.limits.cancel);
  if (ended || ended.error().code() != Code::kTimeout) return ended;
  return Error(Code::kCommTimeout, ended.error().message()).with_rank(ended.error().rank());
}

Status WireCollectives::finish(Job& job) {
  for (const Wire::Pending& flight : job.flights) AMXT_TRY(wait(job, *flight));
  job.flights.clear();
  return {};
}

Status WireCollectives::post_send(Job& job, int peer, uint32_t step, const void* data,
                                  int64_t bytes) {
  AMXT_ASSIGN(auto flight,
              shared_->wire->send(ranks_[static_cast<size_t>(peer)], tag(peer, step), data, bytes));
  job.flights.push_back(std::move(flight));
  return {};
}

Status WireCollectives::post_receive(Job& job, int peer, uint32_t step, void* data, int64_t bytes) {
  AMXT_ASSIGN(auto flight, shared_->wire->receive(ranks_[static_cast<size_t>(peer)],
                                                  tag(rank(), step), data, bytes));
  job.flights.push_back(std::move(flight));
  return {};
}

Status WireCollectives::send_chunks(Job& job, int peer, uint32_t first, const void* data,
                                    int64_t bytes) {
  for (int64_t done = 0; done < bytes; done += kChunkBytes) {
    AMXT_TRY(post_send(job, peer, first++, at(data, done), std::min(kChunkBytes, bytes - done)));
  }
  return {};
}

Status WireCollectives::receive_chunks(Job& job, int peer, uint32_t first, void* data,
                                       int64_t bytes) {
  for (int64_t done = 0; done < bytes; done += kChunkBytes) {
    AMXT_TRY(post_receive(job, peer, first++, at(data, done), std::min(kChunkBytes, bytes - done)));
  }
  return {};
}

Status WireCollectives::enter(Job& job, const CollectiveCall& call) {
  ++calls_;
  Status agreed = area_->barrier(call, job.limits);
  // Ranks of this node that disagree are told to the other nodes.
  if (!agreed && agreed.error().code() != Code::kCommProtocol) return agreed;
  if (local() == 0) {
    // The first rank of each node speaks for it; all compare with the first node, so that all find the same.
    job.entries.resize(nodes_.size());
    Entry& own = job.entries[static_cast<size_t>(node_)];
    own.digest = call.digest();
    own.parts = call.parts;
    own.disagreed = !agreed;
    own.set(agreed ? call.text() : agreed.error().message());
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (is_own(n)) continue;
      AMXT_TRY(post_receive(job, nodes_[n][0], kEnter, &job.entries[n], sizeof(Entry)));
      AMXT_TRY(post_send(job, nodes_[n][0], kEnter, &own, sizeof(Entry)));
    }
    AMXT_TRY(finish(job));
    if (!agreed) return agreed;
    for (Entry& entry : job.entries) {
      entry.text.back() = '\0';
      if (entry.disagreed) return Error(Code::kCommProtocol, entry.text.data());
    }
    const Entry& first = job.entries[0];
    for (size_t n = 1; n < nodes_.size(); ++n) {
      const Entry& other = job.entries[n];
      if (other.parts == first.parts && other.digest == first.digest) continue;
      return Error(Code::kCommProtocol,
                   fmt::format("the ranks disagree: rank {} calls {}, rank {} calls {}{}",
                               nodes_[0][0], first.text.data(), nodes_[n][0], other.text.data(),
                               other.digest == first.digest ? " with other counts per rank" : ""))
          .with_rank(nodes_[n][0]);
    }
  }
  if (!agreed || area_->size() == 1) return agreed;
  return area_->barrier(call, job.limits);
}

// --- Reductions -------------------------------------------------------------------------------

Status WireCollectives::reduce_range(Job& job, const void* own, void* to, int64_t count,
                                     DType dtype, ReduceOp op,
                                     FunctionRef<Status(int64_t begin, int64_t end)> done) {
  const int64_t bytes = dtype_bytes(dtype), per_chunk = kChunkBytes / bytes;
  const int64_t chunks = (count + per_chunk - 1) / per_chunk;
  scratch_.resize(nodes_.size() * kDepth * kChunkBytes);
  const auto place = [&](size_t node, int64_t chunk) {
    return scratch_.data() + (static_cast<int64_t>(node) * kDepth + chunk % kDepth) * kChunkBytes;
  };
  const auto length = [&](int64_t chunk) { return std::min(per_chunk, count - chunk * per_chunk); };

  std::vector<Wire::Pending> receives(nodes_.size() * kDepth);
  const auto pending = [&](size_t node, int64_t chunk) -> Wire::Pending& {
    return receives[node * kDepth + static_cast<size_t>(chunk % kDepth)];
  };
  const auto post = [&](int64_t chunk) -> Status {
    for (size_t n = 0; n < nodes_.size() && chunk < chunks; ++n) {
      if (is_own(n)) continue;
      AMXT_ASSIGN(pending(n, chunk),
                  shared_->wire->receive(ranks_[static_cast<size_t>(partner(n, local()))],
                                         tag(rank(), static_cast<uint32_t>(chunk)), place(n, chunk),
                                         length(chunk) * bytes));
    }
    return {};
  };

  for (int64_t chunk = 0; chunk < kDepth; ++chunk) AMXT_TRY(post(chunk));
  std::vector<const void*> sources(nodes_.size());
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * per_chunk;
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (is_own(n)) {
        sources[n] = at(own, begin * bytes);
        continue;
      }
      AMXT_TRY(wait(job, *pending(n, chunk)));
      sources[n] = place(n, chunk);
    }
    kernels::reduce(dtype, op, sources.data(), static_cast<int>(sources.size()), size(),
                    length(chunk), at(to, begin * bytes));
    AMXT_TRY(post(chunk + kDepth));
    AMXT_TRY(done(begin, begin + length(chunk)));
  }
  return {};
}

Status WireCollectives::reduce_slice(Job& job, const void* own, void* to, int64_t count,
                                     DType dtype, ReduceOp op) {
  const int64_t bytes = dtype_bytes(dtype);
  const auto nodes = static_cast<int64_t>(nodes_.size());
  const auto nothing = [](int64_t, int64_t) -> Status { return {}; };
  if (count * bytes <= kSmallBytes) {
    // Sent from a copy, for the result may go where it lies.
    job.memory.emplace_back(at(own, 0), at(own, count * bytes));
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (is_own(n)) continue;
      AMXT_TRY(send_chunks(job, partner(n, local()), 0, job.memory.back().data(), count * bytes));
    }
    AMXT_TRY(reduce_range(job, own, to, count, dtype, op, nothing));
    return finish(job);
  }
  // Node n reduces part n of the slice and gives it to the others. Its result for a chunk comes only after it has all of this rank's
  // chunk, so that both may lie in the same place.
  const Piece mine = even_part(count, nodes, node_);
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (is_own(n)) continue;
    const Piece part = even_part(count, nodes, static_cast<int64_t>(n));
    const int peer = partner(n, local());
    AMXT_TRY(send_chunks(job, peer, 0, at(own, part.offset * bytes), part.count * bytes));
    AMXT_TRY(receive_chunks(job, peer, kGather, at(to, part.offset * bytes), part.count * bytes));
  }
  const auto give = [&](int64_t begin, int64_t end) -> Status {
    const auto step = kGather + static_cast<uint32_t>(begin * bytes / kChunkBytes);
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (is_own(n)) continue;
      AMXT_TRY(post_send(job, partner(n, local()), step, at(to, (mine.offset + begin) * bytes),
                         (end - begin) * bytes));
    }
    return {};
  };
  AMXT_TRY(reduce_range(job, at(own, mine.offset * bytes), at(to, mine.offset * bytes), mine.count,
                        dtype, op, give));
  return finish(job);
}

Status WireCollectives::reduce_all(Job& job, const CollectiveCall& call, const void* send,
                                   void* receive, int64_t count, DType dtype, ReduceOp op) {
  if (is_flat_) return reduce_slice(job, send, receive, count, dtype, op);
  // A slice for each lane that every node has.
  size_t least = nodes_[0].size();
  for (const auto& there : nodes_) least = std::min(least, there.size());
  const auto slices = static_cast<int64_t>(least);
  std::vector<Piece> pieces(static_cast<size_t>(area_->size()));
  for (int64_t l = 0; l < slices; ++l) pieces[static_cast<size_t>(l)] = even_part(count, slices, l);
  const Piece mine = pieces[static_cast<size_t>(local())];
  void* const slice = at(receive, mine.offset * dtype_bytes(dtype));
  if (area_->size() == 1) {
    AMXT_TRY(reduce_slice(job, send, receive, count, dtype, op));
  } else {
    AMXT_TRY(area_->reduce(call, send, pieces, dtype, partial(op), 1, slice, job.limits));
    if (local() < slices) AMXT_TRY(reduce_slice(job, slice, slice, mine.count, dtype, op));
  }
  return area_->gather(call, slice, receive, pieces, dtype_bytes(dtype), job.limits);
}

Status WireCollectives::reduce_parts(Job& job, const CollectiveCall& call, const void* send,
                                     void* receive, std::span<const int64_t> counts, DType dtype,
                                     ReduceOp op) {
  const int64_t bytes = dtype_bytes(dtype);
  const std::vector<Piece> parts = pieces_of(counts);
  const auto part = [&](int rank) { return parts[static_cast<size_t>(rank)]; };
  const auto width = static_cast<size_t>(area_->size());
  // Other nodes first, so that the wire has work meanwhile.
  for (size_t step = 1; step < nodes_.size(); ++step) {
    const size_t n = (static_cast<size_t>(node_) + step) % nodes_.size();
    for (size_t first = 0; first < nodes_[n].size(); first += width) {
      std::vector<Piece> pieces(width);
      for (size_t l = 0; l < width && first + l < nodes_[n].size(); ++l)
        pieces[l] = part(nodes_[n][first + l]);
      const size_t target = first + static_cast<size_t>(local());
      const Piece mine = pieces[static_cast<size_t>(local())];
      const void* values = at(send, mine.offset * bytes);
      if (width > 1) {
        job.memory.emplace_back(static_cast<size_t>(mine.count * bytes));
        AMXT_TRY(area_->reduce(call, send, pieces, dtype, partial(op), 1, job.memory.back().data(),
                               job.limits));
        values = job.memory.back().data();
      }
      if (target < nodes_[n].size())
        AMXT_TRY(send_chunks(job, nodes_[n][target], 0, values, mine.count * bytes));
    }
  }
  const Piece own = part(rank());
  const void* values = at(send, own.offset * bytes);
  if (width > 1) {
    std::vector<Piece> pieces;
    for (const int there : nodes_[static_cast<size_t>(node_)]) pieces.push_back(part(there));
    AMXT_TRY(area_->reduce(call, send, pieces, dtype, partial(op), 1, receive, job.limits));
    values = receive;
  }
  const auto nothing = [](int64_t, int64_t) -> Status { return {}; };
  AMXT_TRY(reduce_range(job, values, receive, own.count, dtype, op, nothing));
  return finish(job);
}

namespace {

// The type of partial results between levels: sums of fp16 may pass its range, those of averaged narrow integers would wrap around. bf16
// has the range of fp32 and stays as narrow.
DType partial_dtype(DType dtype, ReduceOp op) {
  if (dtype == DType::kF16 && (op == ReduceOp::kSum || op == ReduceOp::kAvg)) return DType::kF32;
  const bool is_narrow = dtype == DType::kU8 || dtype == DType::kI32;
  return is_narrow && op == ReduceOp::kAvg ? DType::kI64 : dtype;
}

template <typename From, typename To>
void convert(const void* from, int64_t count, void* to) {
  for (int64_t i = 0; i < count; ++i)
    static_cast<To*>(to)[i] = static_cast<To>(static_cast<const From*>(from)[i]);
}

// From `dtype` to the type of its partial results, and back.
std::vector<std::byte> widened(const void* values, int64_t count, DType dtype, DType wide_dtype) {
  std::vector<std::byte> wide(static_cast<size_t>(count * dtype_bytes(wide_dtype)));
  if (dtype == DType::kF16) {
    kernels::convert_f16(count, static_cast<const uint16_t*>(values),
                         reinterpret_cast<float*>(wide.data()));
  } else if (dtype == DType::kU8) {
    convert<uint8_t, int64_t>(values, count, wide.data());
  } else {
    convert<int32_t, int64_t>(values, count, wide.data());
  }
  return wide;
}

void narrow(const std::vector<std::byte>& wide, int64_t count, DType dtype, void* to) {
  if (dtype == DType::kF16) {
    kernels::convert_f16(count, reinterpret_cast<const float*>(wide.data()),
                         static_cast<uint16_t*>(to));
  } else if (dtype == DType::kU8) {
    convert<int64_t, uint8_t>(wide.data(), count, to);
  } else {
    convert<int64_t, int32_t>(wide.data(), count, to);
  }
}

}  // namespace

Status WireCollectives::all_reduce(const void* send, void* receive, int64_t count, DType dtype,
                                   ReduceOp op, const Limits& limits) {
  const CollectiveCall call{"all_reduce", dtype, static_cast<int32_t>(op), -1, count, 0};
  const DType wide_dtype = partial_dtype(dtype, op);
  std::vector<std::byte> wide;
  return guarded(limits, [&](Job& job) -> Status {
    AMXT_TRY(enter(job, call));
    if (is_flat_ || wide_dtype == dtype)
      return reduce_all(job, call, send, receive, count, dtype, op);
    wide = widened(send, count, dtype, wide_dtype);
    AMXT_TRY(reduce_all(job, call, wide.data(), wide.data(), count, wide_dtype, op));
    narrow(wide, count, dtype, receive);
    return {};
  });
}

Status WireCollectives::reduce_scatter(const void* send, void* receive,
                                       std::span<const int64_t> counts, DType dtype, ReduceOp op,
                                       const Limits& limits) {
  const CollectiveCall call{"reduce_scatter", dtype,          static_cast<int32_t>(op), -1,
                            sum(counts),      hash_of(counts)};
  const DType wide_dtype = partial_dtype(dtype, op);
  std::vector<std::byte> wide, result;
  return guarded(limits, [&](Job& job) -> Status {
    AMXT_TRY(enter(job, call));
    if (is_flat_ || wide_dtype == dtype)
      return reduce_parts(job, call, send, receive, counts, dtype, op);
    const int64_t count = counts[static_cast<size_t>(rank())];
    wide = widened(send, sum(counts), dtype, wide_dtype);
    result.resize(static_cast<size_t>(count * dtype_bytes(wide_dtype)));
    AMXT_TRY(reduce_parts(job, call, wide.data(), result.data(), counts, wide_dtype, op));
    narrow(result, count, dtype, receive);
    return {};
  });
}

// --- Exchanges --------------------------------------------------------------------------------

Status WireCollectives::gather_parts(Job& job, const CollectiveCall& call, const void* send,
                                     void* receive, std::span<const int64_t> counts,
                                     int64_t element_bytes) {
  const std::vector<Piece> parts = pieces_of(counts);
  const auto place = [&](int r) {
    return at(receive, parts[static_cast<size_t>(r)].offset * element_bytes);
  };
  const auto bytes = [&](int r) { return parts[static_cast<size_t>(r)].count * element_bytes; };
  for (size_t step = 1; step < nodes_.size(); ++step) {
    const size_t to = (static_cast<size_t>(node_) + step) % nodes_.size();
    const size_t from = (static_cast<size_t>(node_) + nodes_.size() - step) % nodes_.size();
    for (size_t j = static_cast<size_t>(local()); j < nodes_[from].size();
         j += static_cast<size_t>(area_->size()))
      AMXT_TRY(
          post_receive(job, nodes_[from][j], 0, place(nodes_[from][j]), bytes(nodes_[from][j])));
    AMXT_TRY(post_send(job, partner(to, local()), 0, send, bytes(rank())));
  }
  if (send != place(rank()) && bytes(rank()) > 0)
    std::memcpy(place(rank()), send, static_cast<size_t>(bytes(rank())));
  AMXT_TRY(finish(job));
  const auto width = static_cast<size_t>(area_->size());
  if (width == 1) return {};
  for (const auto& there : nodes_) {
    for (size_t first = 0; first < there.size(); first += width) {
      std::vector<Piece> pieces(width);
      for (size_t l = 0; l < width && first + l < there.size(); ++l)
        pieces[l] = parts[static_cast<size_t>(there[first + l])];
      AMXT_TRY(area_->gather(
          call, at(receive, pieces[static_cast<size_t>(local())].offset * element_bytes), receive,
          pieces, element_bytes, job.limits));
    }
  }
  return {};
}

Status WireCollectives::all_gather(const void* send, void* receive, std::span<const int64_t> counts,
                                   DType dtype, const Limits& limits) {
  const CollectiveCall call{"all_gather", dtype, -1, -1, sum(counts), hash_of(counts)};
  return guarded(limits, [&](Job& job) -> Status {
    AMXT_TRY(enter(job, call));
    return gather_parts(job, call, send, receive, counts, dtype_bytes(dtype));
  });
}

Status WireCollectives::broadcast(void* data, int64_t count, DType dtype, int root,
                                  const Limits& limits) {
  const CollectiveCall call{"broadcast", dtype, -1, root, count, 0};
  return guarded(limits, [&](Job& job) -> Status {
    AMXT_TRY(enter(job, call));
    size_t home = 0;
    int lane = 0;
    for (size_t n = 0; n < nodes_.size(); ++n) {
      for (size_t l = 0; l < nodes_[n].size(); ++l) {
        if (nodes_[n][l] != root) continue;
        home = n;
        lane = static_cast<int>(l);
      }
    }
    const int64_t bytes = count * dtype_bytes(dtype);
    const int64_t chunks = (bytes + kBroadcastBytes - 1) / kBroadcastBytes;
    const int source = is_own(home) ? lane : lane % area_->size();  // of this node, a member
    const bool receives = !is_own(home) && local() == source;
    const auto length = [&](int64_t c) {
      return std::min(kBroadcastBytes, bytes - c * kBroadcastBytes);
    };
    for (int64_t c = 0; c < chunks; ++c) {
      std::byte* const chunk = at(data, c * kBroadcastBytes);
      if (receives) AMXT_TRY(post_receive(job, root, static_cast<uint32_t>(c), chunk, length(c)));
      for (size_t n = 0; n < nodes_.size() && rank() == root; ++n) {
        if (is_own(n)) continue;
        AMXT_TRY(post_send(job, partner(n, lane), static_cast<uint32_t>(c), chunk, length(c)));
      }
    }
    for (int64_t c = 0; c < chunks; ++c) {
      if (receives) AMXT_TRY(wait(job, *job.flights[static_cast<size_t>(c)]));
      if (area_->size() > 1) {
        AMXT_TRY(
            area_->broadcast(call, at(data, c * kBroadcastBytes), length(c), source, job.limits));
      }
    }
    if (!receives) AMXT_TRY(finish(job));
    return {};
  });
}

Status WireCollectives::all_to_all(const void* send, std::span<const int64_t> send_counts,
                                   void* receive, std::span<const int64_t> receive_counts,
                                   DType dtype, const Limits& limits) {
  const CollectiveCall call{"all_to_all", dtype, -1, -1, CollectiveCall::kVaries};
  const auto world = static_cast<size_t>(size());
  // Everyone's counts, so that all find the same mismatch.
  std::vector<int64_t> table(2 * world * world);
  const std::vector<int64_t> rows(world, static_cast<int64_t>(2 * world));
  int64_t* const own = table.data() + 2 * world * static_cast<size_t>(rank());
  std::copy(send_counts.begin(), send_counts.end(), own);
  std::copy(receive_counts.begin(), receive_counts.end(), own + world);
  return guarded(limits, [&](Job& job) -> Status {
    AMXT_TRY(enter(job, call));
    AMXT_TRY(gather_parts(job, call, own, table.data(), rows, sizeof(int64_t)));
    for (size_t from = 0; from < world; ++from) {
      for (size_t to = 0; to < world; ++to) {
        const int64_t given = table[2 * world * from + to];
        const int64_t expected = table[2 * world * to + world + from];
        if (given == expected) continue;
        return Error(Code::kCommProtocol,
                     fmt::format("the ranks disagree: in all_to_all, rank {} sends {} elements to "
                                 "rank {}, which expects {}",
                                 from, given, to, expected))
            .with_rank(static_cast<int32_t>(from));
      }
    }
    ++calls_;
    const int64_t bytes = dtype_bytes(dtype);
    const std::vector<Piece> out = pieces_of(send_counts), in = pieces_of(receive_counts);
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (is_own(n)) continue;
      for (const int peer : nodes_[n]) {
        const Piece from = in[static_cast<size_t>(peer)], to = out[static_cast<size_t>(peer)];
        AMXT_TRY(post_receive(job, peer, 0, at(receive, from.offset * bytes), from.count * bytes));
        AMXT_TRY(post_send(job, peer, 0, at(send, to.offset * bytes), to.count * bytes));
      }
    }
    std::vector<Piece> local_out, local_in;
    for (const int peer : nodes_[static_cast<size_t>(node_)]) {
      local_out.push_back(out[static_cast<size_t>(peer)]);
      local_in.push_back(in[static_cast<size_t>(peer)]);
    }
    AMXT_TRY(area_->all_to_all(call, send, local_out, receive, local_in, bytes, job.limits));
    return finish(job);
  });
}

Status WireCollectives::barrier(const Limits& limits) {
  return guarded(limits, [&](Job& job) { return enter(job, CollectiveCall::barrier()); });
}

void WireCollectives::give_up(Error why) {
  (void)guarded({}, [&](Job&) -> Status { return std::move(why); });
}

Status WireCollectives::exchange(const CollectiveCall& call, const void* own, void* all,
                                 int64_t bytes, const Limits& limits) {
  const std::vector<int64_t> counts(static_cast<size_t>(size()), bytes);
  return guarded(limits, [&](Job& job) -> Status {
    AMXT_TRY(enter(job, call));
    return gather_parts(job, call, own, all, counts, 1);
  });
}

// --- Messages ---------------------------------------------------------------------------------

Status WireCollectives::send(const void* data, int64_t count, DType dtype, int peer,
                             const Limits& limits) {
  const CollectiveCall call{"send", dtype, -1, -1, count, 0};
  const auto& own = nodes_[static_cast<size_t>(node_)];
  if (const auto found = std::find(own.begin(), own.end(), peer); found != own.end()) {
    return guarded(limits, [&](Job&) {
      return area_->send(call, data, count * dtype_bytes(dtype),
                         static_cast<int>(found - own.begin()), limits);
    });
  }
  return guarded(limits, [&](Job& job) -> Status {
    const uint64_t message = message_tag(peer, sent_[static_cast<size_t>(peer)]++);
    const int to = ranks_[static_cast<size_t>(peer)];
    job.entries.resize(1);
    Entry& head = job.entries[0];
    head.parts = static_cast<uint64_t>(count) * 64 + static_cast<uint64_t>(dtype);
    head.set(call.text());
    AMXT_ASSIGN(auto first, shared_->wire->send(to, message, &head, sizeof head));
    job.flights.push_back(std::move(first));
    AMXT_ASSIGN(auto second,
                shared_->wire->send(to, message | 1, data, count * dtype_bytes(dtype)));
    job.flights.push_back(std::move(second));
    return finish(job);
  });
}

Status WireCollectives::receive(void* data, int64_t count, DType dtype, int peer,
                                const Limits& limits) {
  const CollectiveCall call{"receive", dtype, -1, -1, count, 0};
  const auto& own = nodes_[static_cast<size_t>(node_)];
  if (const auto found = std::find(own.begin(), own.end(), peer); found != own.end()) {
    return guarded(limits, [&](Job&) {
      return area_->receive(call, data, count * dtype_bytes(dtype),
                            static_cast<int>(found - own.begin()), limits);
    });
  }
  return guarded(limits, [&](Job& job) -> Status {
    const uint64_t message = message_tag(rank(), received_[static_cast<size_t>(peer)]++);
    const int from = ranks_[static_cast<size_t>(peer)];
    job.entries.resize(1);
    Entry& head = job.entries[0];
    AMXT_ASSIGN(auto first, shared_->wire->receive(from, message, &head, sizeof head));
    job.flights.push_back(std::move(first));
    AMXT_TRY(finish(job));
    head.text.back() = '\0';
    if (head.parts != static_cast<uint64_t>(count) * 64 + static_cast<uint64_t>(dtype)) {
      Error error =
          Error(Code::kCommProtocol,
                fmt::format("the ranks disagree: rank {} calls {} to rank {}, which calls {}", peer,
                            head.text.data(), rank(), call.text()))
              .with_rank(peer);
      shared_->wire->close(&error);  // the sender waits for a receive of its size
      return error;
    }
    AMXT_ASSIGN(auto second,
                shared_->wire->receive(from, message | 1, data, count * dtype_bytes(dtype)));
    job.flights.push_back(std::move(second));
    return finish(job);
  });
}

}  // namespace amxt::comm
