#include "comm/node_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <thread>
#include <utility>

#include "base/cpu.h"
#include "base/futex.h"
#include "base/text.h"
#include "comm/control_channel.h"
#include "comm/control_segment.h"
#include "comm/memory_file.h"
#include "comm/rendezvous.h"
#include "comm/rendezvous_entry.h"
#include "comm/wire.h"

namespace amxt::comm {
namespace {

constexpr int64_t kSpinNs = 50'000;
constexpr int64_t kLookNs = 100'000'000;       // a sleeping rank looks around this often
constexpr int64_t kCancelLookNs = 10'000'000;  // and this often for a cancel
constexpr int64_t kReasonNs = 1'000'000'000;   // a reason comes this soon after what it ended
constexpr int64_t kCollapseFromBytes = int64_t{64} << 20;
constexpr int64_t kCollapsePages = 64;  // at a time

// What one rank says at the end of share().
struct ShareReport {
  Code code = Code::kOk;
  int64_t bytes = 0;
  std::string what, text;

  std::string pack() const {
    return fmt::format("{}\n{}\n{}\n{}", static_cast<int>(code), bytes, what, text)
        .substr(0, ControlSegment::kMaxPayload);
  }
  static ShareReport unpack(std::string_view packed) {
    const auto line = [&packed] {
      const std::string_view part = packed.substr(0, packed.find('\n'));
      packed.remove_prefix(std::min(packed.size(), part.size() + 1));
      return part;
    };
    ShareReport report;
    int code = 0;
    const std::string_view code_text = line(), bytes_text = line();
    std::from_chars(code_text.data(), code_text.data() + code_text.size(), code);
    std::from_chars(bytes_text.data(), bytes_text.data() + bytes_text.size(), report.bytes);
    report.code = static_cast<Code>(code);
    report.what = line();
    report.text = packed;
    return report;
  }
};

class NodeGroup final : public Group {
 public:
  NodeGroup(const LaunchInfo& launch, ControlSegment segment)
      : launch_(launch),
        nodes_(Nodes::one(launch.world_size, host_name())),
        segment_(std::move(segment)) {}

  Status start(std::vector<Member> members, Log* log) {
    oversubscribed_ = exceeds_cpus(members);
    AMXT_ASSIGN(channel_, ControlChannel::start(rank(), std::move(members), log,
                                                [this] { segment_.wake(); }));
    return {};
  }

  const LaunchInfo& launch() const override { return launch_; }
  const Nodes& nodes() const override { return nodes_; }
  bool oversubscribed() const override { return oversubscribed_; }
  Result<std::unique_ptr<Wire>> make_wire(Deadline) override {
    return Error(Code::kInvalidState, "a group of one node needs no wire");
  }
  void set_listener(Listener) override {}
  void post(int, std::string_view) override {}
  Status check() const override { return channel_->check(); }

  void abort(std::string_view reason) override {
    Error error(Code::kCommAborted, fmt::format("{} gave up: {}", name(rank()), reason));
    channel_->fail(std::move(error).with_rank(rank()));
  }

  Status barrier(Deadline deadline, const std::atomic<bool>* cancel) override {
    auto number = meet(Collective::kBarrier, {}, deadline, cancel);
    if (!number) return std::move(number).error();
    return {};
  }

  Result<std::vector<std::string>> exchange(std::string_view payload, Deadline deadline) override {
    if (payload.size() > ControlSegment::kMaxPayload) return payload_error(payload.size());
    AMXT_ASSIGN(const uint64_t number, meet(Collective::kExchange, payload, deadline, nullptr));
    return segment_.payloads(number);
  }

  Status finalize(Deadline deadline) override {
    auto number = meet(Collective::kFinalize, {}, deadline, nullptr);
    if (!number) return std::move(number).error();
    finalized_ = true;
    channel_->leave();
    return {};
  }

  Result<SharedMemory> share(std::string_view what, int64_t bytes, Deadline deadline) override {
    if (bytes < 0) {
      return Error(Code::kInvalidArgument,
                   fmt::format("shared memory {} of {} bytes", quote(what), bytes));
    }
    AMXT_TRY(usable());
    ShareReport report{Code::kOk, bytes, quote(what), {}};
    auto mapped = rank() == 0 ? offer(report.what, bytes) : take(report.what, bytes, deadline);
    AMXT_TRY(channel_->check());
    SharedMemory memory;
    if (mapped) {
      memory = std::move(*mapped);
      use_huge_pages(memory, deadline);
    } else {
      report.code = mapped.error().code();
      report.text = mapped.error().message();
    }
    AMXT_ASSIGN(const uint64_t number, meet(Collective::kShare, report.pack(), deadline, nullptr));
    AMXT_TRY(agree(report, segment_.payloads(number)));
    return memory;
  }

 private:
  std::string name(int rank) const { return rank_text(channel_->identity(rank)); }

  Status usable() const {
    AMXT_TRY(channel_->check());
    if (finalized_) return Error(Code::kInvalidState, "the group was finalized");
    if (cancelled_) {
      return Error(Code::kInvalidState,
                   "a wait of this group was cancelled: it can only be aborted");
    }
    return {};
  }

  // Why a wait ends before all have arrived.
  enum class Ending { kNone, kFailed, kLeft, kCancelled, kDeadline };

  // Arrives and waits for all; the number of the collective, for its payloads. All living ranks pass or none: who can't wait any more
  // breaks it off, unless it has opened meanwhile.
  Result<uint64_t> meet(Collective collective, std::string_view payload, Deadline deadline,
                        const std::atomic<bool>* cancel) {
    AMXT_TRY(usable());
    if (is_set(cancel) && break_off(Ending::kCancelled, segment_.next_number())) {
      return end(Ending::kCancelled, collective, segment_.next_number());
    }
    const auto [number, last] = segment_.arrive(collective, payload);
    if (last) {
      const int other = segment_.disagrees();
      if (other >= 0) return out_of_order(collective, number, other);
      segment_.open(number);
    } else {
      spin(number);
    }
    while (!segment_.is_open(number)) {
      if (segment_.is_broken(number)) return broken_off(collective);
      const Ending ending = ending_of(number, deadline, cancel);
      if (ending == Ending::kNone) {
        segment_.sleep(
            number, deadline.earlier(Deadline::after(cancel != nullptr ? kCancelLookNs : kLookNs)));
      } else if (break_off(ending, number)) {
        return end(ending, collective, number);
      }
    }
    return number;
  }

  static bool is_set(const std::atomic<bool>* cancel) {
    return cancel != nullptr && cancel->load(std::memory_order_acquire);
  }

  Ending ending_of(uint64_t number, Deadline deadline, const std::atomic<bool>* cancel) const {
    if (channel_->failed()) return Ending::kFailed;
    if (first_that_left(number) >= 0) return Ending::kLeft;
    if (is_set(cancel)) return Ending::kCancelled;
    if (deadline.passed()) return Ending::kDeadline;
    return Ending::kNone;
  }

  bool break_off(Ending ending, uint64_t number) {
    if (ending == Ending::kCancelled) segment_.set_cancelled(true);
    if (segment_.break_off(number)) return true;
    if (ending == Ending::kCancelled) segment_.set_cancelled(false);
    return false;
  }

  // A rank that has finalized arrives nowhere any more.
  int first_that_left(uint64_t number) const {
    for (const int rank : segment_.missing(number)) {
      if (channel_->left(rank)) return rank;
    }
    return -1;
  }

  Error end(Ending ending, Collective collective, uint64_t number) {
    switch (ending) {
      case Ending::kCancelled:
        cancelled_ = true;
        return Error(Code::kCancelled, fmt::format("{}: cancelled", collective_name(collective)));
      case Ending::kDeadline:
        return timed_out(collective, number);
      case Ending::kLeft: {
        const int rank = first_that_left(number);
        return channel_->fail_with(
            Error(Code::kCommAborted, name(rank) + " has finalized the group while others go on")
                .with_rank(rank));
      }
      default:
        return channel_->fail_with(
            Error(Code::kCommAborted, "the group has failed"));  // with its own reason
    }
  }

  // By another rank, whose reason is here already or on its way; a cancelled one sends none.
  Error broken_off(Collective collective) {
    const Deadline until = Deadline::after(kReasonNs);
    while (!channel_->failed() && !until.passed()) {
      for (int rank = 0; rank < size(); ++rank) {
        if (!segment_.has_cancelled(rank)) continue;
        return channel_->fail_with(
            Error(Code::kCommAborted, name(rank) + " cancelled its wait").with_rank(rank));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return channel_->fail_with(Error(Code::kCommAborted, fmt::format("another rank broke off a {}",
                                                                     collective_name(collective))));
  }

  void spin(uint64_t number) const {
    if (oversubscribed_) return;
    const Deadline end = Deadline::after(kSpinNs);
    while (!segment_.is_open(number) && !end.passed()) {
      for (int i = 0; i < 16; ++i) spin_pause();
    }
  }

  Error out_of_order(Collective collective, uint64_t number, int other) {
    segment_.break_off(number);
    return channel_->fail_with(
        Error(Code::kCommProtocol, fmt::format("{} is in {} while {} is in {}", name(other),
                                               collective_name(segment_.collective(other)),
                                               name(rank()), collective_name(collective)))
            .with_rank(other));
  }

  Error timed_out(Collective collective, uint64_t number) {
    const std::vector<int> missing = segment_.missing(number);
    std::string who;
    for (const int rank : missing) who += fmt::format("{}{}", who.empty() ? "" : ", ", name(rank));
    if (missing.empty()) who = "the last rank";  // just now, too late
    const int first = missing.empty() ? -1 : missing.front();
    return channel_->fail_with(
        Error(Code::kCommTimeout, fmt::format("{} did not arrive at a {} within the deadline of {}",
                                              who, collective_name(collective), name(rank())))
            .with_rank(first));
  }

  Result<SharedMemory> offer(const std::string& what, int64_t bytes) {
    ControlChannel::Segment segment;
    segment.bytes = bytes;
    segment.text = what;
    auto made =
        bytes > 0 ? make_and_map(bytes, &segment.file) : Result<SharedMemory>(SharedMemory());
    if (!made) {
      segment.code = made.error().code();
      segment.text = made.error().message();
    }
    channel_->send_segment(++shares_, segment);
    return made;
  }

  Result<SharedMemory> make_and_map(int64_t bytes, Descriptor* file) {
    AMXT_ASSIGN(*file, make_memory_file("amxtrain", bytes));
    AMXT_ASSIGN(std::byte* const data, map_memory_file(*file, bytes));
    interleave_memory(data, bytes);
    return adopt(data, bytes);
  }

  Result<SharedMemory> take(const std::string& what, int64_t bytes, Deadline deadline) {
    auto segment = channel_->wait_for_segment(++shares_, deadline);
    if (!segment && segment.error().code() == Code::kTimeout) {
      return channel_->fail_with(
          Error(Code::kCommTimeout,
                fmt::format("{} did not offer shared memory {} within the deadline of {}", name(0),
                            what, name(rank())))
              .with_rank(0));
    }
    if (!segment) return std::move(segment).error();
    // Rank 0 reports its own failure, and a difference is everyone's.
    if (segment->code != Code::kOk || segment->bytes != bytes || bytes == 0) return SharedMemory();
    if (!segment->file) return Error(Code::kLimit, "no file descriptor left to take it with");
    AMXT_ASSIGN(std::byte* const data, map_memory_file(segment->file, bytes));
    return adopt(data, bytes);
  }

  // Each rank allocates and collapses its part of the pages.
  void use_huge_pages(const SharedMemory& memory, Deadline deadline) const {
    if (memory.bytes() < kCollapseFromBytes) return;
    const int64_t pages = memory.bytes() / kHugePageBytes;
    const int64_t end = pages * (rank() + 1) / size();
    for (int64_t page = pages * rank() / size(); page < end; page += kCollapsePages) {
      if (channel_->failed() || deadline.passed()) return;
      const int64_t last = std::min(page + kCollapsePages, end);
      if (collapse_pages(memory.data(), page, last) > 0)
        return;  // no huge page free, or an old kernel
    }
  }

  // The same verdict on every rank: the first that failed, else the first that asks for something else than rank 0.
  Status agree(const ShareReport& own, const std::vector<std::string>& packed) const {
    std::vector<ShareReport> reports;
    for (const std::string& text : packed) reports.push_back(ShareReport::unpack(text));
    for (size_t i = 0; i < reports.size(); ++i) {
      if (reports[i].code == Code::kOk) continue;
      const int rank = static_cast<int>(i);
      return Error(reports[i].code,
                   fmt::format("shared memory {}: {}: {}", own.what, name(rank), reports[i].text))
          .with_rank(rank);
    }
    for (size_t i = 1; i < reports.size(); ++i) {
      if (reports[i].bytes == reports[0].bytes && reports[i].what == reports[0].what) continue;
      const int rank = static_cast<int>(i);
      return Error(Code::kMismatch,
                   fmt::format("{} asks for {} bytes of shared memory {}, {} for {} of {}",
                               name(rank), reports[i].bytes, reports[i].what, name(0),
                               reports[0].bytes, reports[0].what))
          .with_rank(rank);
    }
    return {};
  }

  static bool exceeds_cpus(const std::vector<Member>& members) {
    uint64_t cpus[std::size(Identity{}.cpus)] = {};
    int64_t threads = 0;
    for (const Member& member : members) {
      threads += member.identity.threads;
      int own = 0;
      for (size_t i = 0; i < std::size(cpus); ++i) {
        cpus[i] |= member.identity.cpus[i];
        own += std::popcount(member.identity.cpus[i]);
      }
      if (member.identity.threads > own) return true;
    }
    int64_t all = 0;
    for (const uint64_t word : cpus) all += std::popcount(word);
    const double quota = cpu_limits().cgroup_cpus;
    return threads > all || (quota > 0 && static_cast<double>(threads) > quota);
  }

  const LaunchInfo launch_;
  const Nodes nodes_;
  ControlSegment segment_;  // before the channel, whose thread wakes those who wait in it
  bool oversubscribed_ = false;
  bool finalized_ = false;
  bool cancelled_ = false;
  uint64_t shares_ = 0;
  std::unique_ptr<ControlChannel> channel_;
};

}  // namespace

Result<std::unique_ptr<Group>> make_node_group(const LaunchInfo& launch,
                                               const GroupOptions& options, Log* log,
                                               Deadline deadline) {
  AMXT_ASSIGN(
      Gathering gathering,
      gather(launch, options.threads, ControlSegment::bytes_for(launch.world_size), log, deadline));
  AMXT_ASSIGN(ControlSegment segment,
              ControlSegment::map(gathering.control, launch.rank, launch.world_size));
  auto group = std::make_unique<NodeGroup>(launch, std::move(segment));
  AMXT_TRY(group->start(std::move(gathering.members), log));
  return std::unique_ptr<Group>(std::move(group));
}

}  // namespace amxt::comm
