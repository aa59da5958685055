#include "comm/job_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/cpu.h"
#include "base/futex.h"
#include "base/text.h"
#include "comm/call_book.h"
#include "comm/control_channel.h"
#include "comm/control_segment.h"
#include "comm/gloo_wire.h"
#include "comm/handshake.h"
#include "comm/meeting.h"
#include "comm/memory_file.h"
#include "comm/rendezvous.h"
#include "comm/rendezvous_entry.h"
#include "comm/wire.h"

namespace amxt::comm {
namespace {

constexpr int64_t kSpinNs = 50'000;
constexpr int64_t kLookNs = 100'000'000;       // a sleeping rank looks around this often
constexpr int64_t kCancelLookNs = 10'000'000;  // and this often for a cancel
constexpr int64_t kReasonNs =
    1'000'000'000;  // a reason, or rank 0's word, comes this soon after what it ended
constexpr int64_t kLateNs = 20'000'000;     // who waits so long for others of its node tells rank 0
constexpr int64_t kTellNs = 50'000'000;     // a call that takes so long is told to the others
constexpr int64_t kSendNs = 2'000'000'000;  // a send, which may yet end without its receive
// How long a mismatch that ranks find where they wait is held back: by then the calls that led there are told.
constexpr int64_t kHoldNs = 400'000'000;
constexpr size_t kMostEnds = 64;  // of what ranks told each other, the latest
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

class JobGroup final : public Group, private ControlChannel::Owner {
 public:
  JobGroup(const LaunchInfo& launch, const GroupOptions& options, Log* log, Gathering gathering,
           ControlSegment segment)
      : launch_(launch),
        log_(log),
        nodes_(std::move(gathering.nodes)),
        oversubscribed_(exceeds_cpus(gathering.members, nodes_.on(nodes_.node_of(launch.rank)))),
        allows_unauthenticated_data_(options.allow_unauthenticated_data),
        books_(launch.rank),
        segment_(std::move(segment)),
        channel_(launch.rank, std::move(gathering.members), options.peer_timeout_ns, log, this) {
    if (rank() == 0 && node_count() > 1) {
      meeting_.emplace(
          nodes_, [this](int rank) { return name(rank); },
          [this](uint64_t number, const std::string& payloads) { tell_open(number, payloads); });
    }
  }

  Status start() { return channel_.start(); }

  const LaunchInfo& launch() const override { return launch_; }
  const Nodes& nodes() const override { return nodes_; }
  bool oversubscribed() const override { return oversubscribed_; }
  Status check() const override { return channel_.check(); }

  void tell_end(uint64_t what, const Error& why) override {
    keep_end(what, why);
    Message message;
    message.kind = MessageKind::kEnded;
    message.code = static_cast<int32_t>(why.code());
    message.about_rank = why.rank();
    message.sequence = what;
    message.set_text(why.message());
    channel_.send_to_all(message);
  }

  std::optional<Error> end_of(uint64_t what) const override {
    const std::lock_guard lock(ends_mutex_);
    for (const auto& [ended, why] : ends_) {
      if (ended == what) return why;
    }
    return std::nullopt;
  }

  Result<std::unique_ptr<Wire>> make_wire(const Limits& limits) override {
    if (node_count() == 1) {
      return Error(Code::kInvalidState, "a group of one node needs no wire");
    }
    if (!launch_.secret_file.empty()) AMXT_TRY(allow_unauthenticated_wire());
    return make_gloo_wire(*this, log_, limits);
  }

  void set_listener(Listener listener) override {
    const std::lock_guard lock(listener_mutex_);
    listener_ = std::move(listener);
  }

  void post(int to, std::string_view message) override {
    if (to < 0 || to >= size() || to == rank() || message.size() > kMaxPost) return;
    Message post;
    post.kind = MessageKind::kPost;
    post.payload = message;
    channel_.send(to, post);
  }

  void abort(std::string_view reason) override {
    Error error(Code::kCommAborted, fmt::format("{} gave up: {}", name(rank()), reason));
    channel_.fail(std::move(error).with_rank(rank()));
  }

  Result<uint64_t> begin_call(uint64_t communicator, const CollectiveCall& call,
                              bool is_collective) override {
    AMXT_TRY(channel_.check());
    AMXT_ASSIGN(const auto book, book_of(communicator));
    CallBook::Begun begun = book->begin(call, is_collective, monotonic_ns());
    if (begun.mismatch) return channel_.fail_with(*std::move(begun.mismatch));
    if (begun.was_idle) channel_.kick();
    return begun.number;
  }

  void end_call(uint64_t communicator, uint64_t number) override {
    if (const auto book = books_.find(communicator)) book->end(number);
  }

  Result<uint64_t> begin_letter(uint64_t communicator, const CollectiveCall& call, int peer,
                                bool sends, bool blocks) override {
    AMXT_TRY(channel_.check());
    AMXT_ASSIGN(const auto book, book_of(communicator));
    const CallBook::Begun begun = book->begin(CallBook::Letter{call, peer, sends, blocks});
    if (begun.was_idle) channel_.kick();
    return begun.number;
  }

  void end_letter(uint64_t communicator, uint64_t number) override {
    const auto book = books_.find(communicator);
    if (book == nullptr) return;
    if (const auto told = book->end_letter(number)) tell_call(*told);
  }

  void open_calls(uint64_t communicator, std::vector<int> ranks) override {
    books_.open(communicator, std::move(ranks));
  }
  void close_calls(uint64_t communicator) override { books_.close(communicator); }

  Status barrier(const Limits& limits) override {
    auto number = meet(Collective::kBarrier, {}, limits);
    if (!number) return std::move(number).error();
    return {};
  }

  Result<std::vector<std::string>> exchange(std::string_view payload,
                                            const Limits& limits) override {
    if (payload.size() > ControlSegment::kMaxPayload) return payload_error(payload.size());
    AMXT_ASSIGN(const uint64_t number, meet(Collective::kExchange, payload, limits));
    return segment_.payloads(number);
  }

  Status meet_for_collectives(const Limits& limits) override {
    auto number = meet(Collective::kCollectives, {}, limits);
    if (!number) return std::move(number).error();
    return {};
  }

  Status finalize(const Limits& limits) override {
    auto number = meet(Collective::kFinalize, {}, limits);
    if (!number) return std::move(number).error();
    finalized_ = true;
    channel_.leave();
    return {};
  }

  Result<SharedMemory> share(std::string_view what, int64_t bytes, const Limits& limits) override {
    if (bytes < 0) {
      return Error(Code::kInvalidArgument,
                   fmt::format("shared memory {} of {} bytes", quote(what), bytes));
    }
    AMXT_TRY(usable());
    ShareReport report{Code::kOk, bytes, quote(what), {}};
    auto mapped = rank() == leader() ? offer(report.what, bytes) : take(report.what, bytes, limits);
    AMXT_TRY(channel_.check());
    SharedMemory memory;
    if (mapped) {
      memory = std::move(*mapped);
      use_huge_pages(memory, limits);
    } else {
      report.code = mapped.error().code();
      report.text = mapped.error().message();
    }
    AMXT_ASSIGN(const uint64_t number, meet(Collective::kShare, report.pack(), limits));
    AMXT_TRY(agree(report, segment_.payloads(number)));
    return memory;
  }

 protected:
  void changed() override { segment_.wake(); }

  void heard(int from, const Message& message) override {
    switch (message.kind) {
      case MessageKind::kPost: {
        const std::lock_guard lock(listener_mutex_);
        if (listener_) listener_(from, message.payload);
        return;
      }
      case MessageKind::kOpen:
        if (from == 0) open_here(message.sequence, message.payload);
        return;
      case MessageKind::kArrive:
        return hold_unless(meet_nodes(from, static_cast<Collective>(message.code), message.sequence,
                                      message.payload));
      case MessageKind::kWaiting:
        if (meeting_) meeting_->waits(from, message.sequence);
        return;
      case MessageKind::kGiveUp:
        return end_for_all(from, message.sequence, message.get_text(),
                           static_cast<Code>(message.code));
      case MessageKind::kEnded:
        return keep_end(message.sequence, root_cause(message));
      case MessageKind::kCalled:
        if (const auto told = as_told(rank() == 0 ? from : message.about_rank, message))
          hear_call(*told);
        return;
      default:
        return;
    }
  }

  int64_t look() override {
    const int64_t now_ns = monotonic_ns();
    bool rests = true;
    for (const auto& book : books_.all()) {
      tell_calls(*book, now_ns - kTellNs);
      for (const auto& told : book->late_letters(now_ns, kTellNs, kSendNs)) tell_call(told);
      if (auto error = book->deadlock(now_ns - kHoldNs)) channel_.fail(*std::move(error));
      rests &= book->rests();
    }
    const int64_t held_ns = held_until_.load(std::memory_order_acquire);
    if (held_ns != 0 && monotonic_ns() >= held_ns) {
      const std::lock_guard lock(held_mutex_);
      channel_.fail(*held_);
    }
    if (held_ns == 0 && rests) return -1;
    return kTellNs;
  }

  uint64_t last_word() override { return meeting_ ? meeting_->close() : 0; }

 private:
  void keep_end(uint64_t what, const Error& why) {
    const std::lock_guard lock(ends_mutex_);
    for (const auto& [ended, first] : ends_) {
      if (ended == what) return;
    }
    ends_.emplace_back(what, why);
    if (ends_.size() > kMostEnds) ends_.pop_front();
  }

  // --- What ranks call (call_book.h) ---

  Result<std::shared_ptr<CallBook>> book_of(uint64_t communicator) const {
    auto book = books_.find(communicator);
    if (book == nullptr) return Error(Code::kInvalidState, "the communicator is closed");
    return book;
  }

  void tell_calls(CallBook& book, int64_t since_ns) {
    for (const CallBook::Told& told : book.late(since_ns)) tell_call(told);
  }

  void tell_call(const CallBook::Told& told) {
    if (rank() == 0) {
      pass_on(told);
    } else {
      channel_.send(0, as_message(told));
    }
  }

  void hear_call(const CallBook::Told& told) {
    if (told.rank < 0 || told.rank >= size()) return;
    if (rank() == 0) pass_on(told);
    if (told.rank == rank()) return;
    if (auto mismatch = books_.hear(told)) channel_.fail(*std::move(mismatch));
  }

  void pass_on(const CallBook::Told& told) {
    if (books_.first().is_news(told)) channel_.send_to_all(as_message(told));
  }

  static Message as_message(const CallBook::Told& told) {
    Message message;
    message.kind = MessageKind::kCalled;
    message.sequence = told.number;
    message.about_rank = told.rank;
    message.code = told.peer + 1;
    message.bytes = (told.is_collective ? CallTraits::kCollective : 0) |
                    (told.sends ? CallTraits::kSends : 0) |
                    (told.blocks ? CallTraits::kBlocks : 0) | (told.over ? CallTraits::kOver : 0) |
                    static_cast<int64_t>(told.ordinal << CallTraits::kOrdinalShift);
    Message text;
    text.set_text(told.text);
    message.payload.assign(reinterpret_cast<const char*>(&told.communicator),
                           sizeof told.communicator);
    message.payload += text.payload;
    return message;
  }

  static std::optional<CallBook::Told> as_told(int rank, const Message& message) {
    CallBook::Told told;
    if (message.payload.size() < sizeof told.communicator) return std::nullopt;
    std::memcpy(&told.communicator, message.payload.data(), sizeof told.communicator);
    Message text;
    text.payload = message.payload.substr(sizeof told.communicator);
    told.rank = rank;
    told.number = message.sequence;
    told.is_collective = (message.bytes & CallTraits::kCollective) != 0;
    told.text = text.get_text();
    told.peer = message.code - 1;
    told.ordinal = static_cast<uint64_t>(message.bytes) >> CallTraits::kOrdinalShift;
    told.sends = (message.bytes & CallTraits::kSends) != 0;
    told.blocks = (message.bytes & CallTraits::kBlocks) != 0;
    told.over = (message.bytes & CallTraits::kOver) != 0;
    return told;
  }

  // Ends the group with what was found where ranks meet, unless the calls that brought them there, which are told meanwhile, say it better.
  void hold(Error error) {
    if (books_.first().under_way() == 0) return channel_.fail(std::move(error));
    {
      const std::lock_guard lock(held_mutex_);
      if (held_) return;
      held_ = std::move(error);
    }
    held_until_.store(monotonic_ns() + kHoldNs, std::memory_order_release);
    tell_calls(books_.first(), INT64_MAX);
    channel_.kick();
  }

  // What the host waits for, in messages.
  std::string waited_for(Collective collective) const {
    const auto call = books_.first().only();
    return call ? call->text : a_collective(collective);
  }

  // All ranks have the same option, by their handshakes.
  Status allow_unauthenticated_wire() {
    if (!allows_unauthenticated_data_) {
      return Error(Code::kUnsupported,
                   "gloo cannot authenticate the connections that carry data, and a secret is set "
                   "(AMXTRAIN_SECRET_FILE): --allow-unauthenticated-data lets it carry them all "
                   "the same");
    }
    if (log_ != nullptr && !has_warned_ && rank() == 0) {
      log_->warning("data between nodes goes over gloo, which cannot authenticate it");
    }
    has_warned_ = true;
    return {};
  }

  std::string name(int rank) const { return rank_text(channel_.identity(rank)); }

  Status usable() const {
    if (cancelled_) {
      return Error(Code::kInvalidState,
                   "a wait of this group was cancelled: it can only be aborted");
    }
    AMXT_TRY(channel_.check());
    if (finalized_) return Error(Code::kInvalidState, "the group was finalized");
    return {};
  }

  // Why a wait ends before all have arrived.
  enum class Ending { kNone, kFailed, kLeft, kCancelled, kDeadline };

  // Arrives and waits for all; the number of the collective in the segment, for its payloads. All living ranks pass or none.
  Result<uint64_t> meet(Collective collective, std::string_view payload, const Limits& limits) {
    AMXT_TRY(usable());
    const bool on_node = node_count() == 1 || collective == Collective::kShare;
    return on_node ? meet_on_node(collective, payload, limits)
                   : meet_on_job(collective, payload, limits);
  }

  // The ranks of a node decide by themselves: who can't wait any more breaks it off, unless it has opened meanwhile.
  Result<uint64_t> meet_on_node(Collective collective, std::string_view payload,
                                const Limits& limits) {
    if (limits.cancelled() && break_off(Ending::kCancelled, segment_.next_number())) {
      return end(Ending::kCancelled, collective, segment_.next_number());
    }
    const auto [number, last] = segment_.arrive(collective, payload);
    if (last) {
      const int other = segment_.disagrees();
      if (other >= 0) {
        segment_.break_off(number);
        return out_of_order(collective, other);
      }
      segment_.open(number);
    } else {
      spin(number);
    }
    while (!segment_.is_open(number)) {
      if (segment_.is_broken(number)) return broken_off(collective);
      const Ending ending = ending_of(number, limits);
      if (ending == Ending::kNone) {
        segment_.sleep(number, limits.deadline.earlier(Deadline::after(
                                   limits.cancel != nullptr ? kCancelLookNs : kLookNs)));
      } else if (break_off(ending, number)) {
        return end(ending, collective, number);
      }
    }
    return number;
  }

  // Rank 0 decides for all nodes. The last to arrive on a node tells it; it tells the leaders, who open. Who can't wait any more says so
  // to rank 0 and goes by its word.
  Result<uint64_t> meet_on_job(Collective collective, std::string_view payload,
                               const Limits& limits) {
    const uint64_t in_job = meetings_.load(std::memory_order_relaxed) + 1;
    opens_next_.store(segment_.next_number(), std::memory_order_release);
    meetings_.store(in_job, std::memory_order_release);
    Ending ending = limits.cancelled() ? Ending::kCancelled : Ending::kNone;
    uint64_t number = segment_.next_number();
    if (ending == Ending::kNone) {
      const auto arrival = segment_.arrive(collective, payload);
      number = arrival.number;
      if (arrival.last) {
        const int other = segment_.disagrees();
        if (other >= 0) return out_of_order(collective, other);
        arrive_at_job(collective, in_job, number);
      }
      spin(number);
    }
    const Deadline late = Deadline::after(kLateNs);
    bool has_told = false;
    while (!segment_.is_open(number)) {
      if (ending == Ending::kNone) ending = ending_on_job(limits);
      if (ending != Ending::kNone) return give_up(ending, collective, in_job, number);
      if (!has_told && late.passed()) {
        has_told = true;
        tell_waiting(in_job);
      }
      const int64_t look_ns = !has_told                  ? kLateNs
                              : limits.cancel != nullptr ? kCancelLookNs
                                                         : kLookNs;
      segment_.sleep(number, limits.deadline.earlier(Deadline::after(look_ns)));
    }
    return number;
  }

  Ending ending_on_job(const Limits& limits) const {
    if (channel_.failed()) return Ending::kFailed;
    if (limits.cancelled()) return Ending::kCancelled;
    if (limits.deadline.passed()) return Ending::kDeadline;
    return Ending::kNone;
  }

  void arrive_at_job(Collective collective, uint64_t in_job, uint64_t number) {
    // Rank 0 sees the payloads of its own node itself.
    std::string payloads = node() == 0 && rank() != 0 ? std::string() : payloads_here(number);
    if (rank() == 0) return hold_unless(meeting_->arrive(0, collective, in_job, payloads));
    Message message;
    message.kind = MessageKind::kArrive;
    message.code = static_cast<int32_t>(collective);
    message.sequence = in_job;
    message.payload = std::move(payloads);
    channel_.send(0, message);
  }

  std::string payloads_here(uint64_t number) const {
    const std::vector<std::string> all = segment_.payloads(number);
    std::vector<std::string> here;
    for (const int rank : nodes_.on(node())) here.push_back(all[static_cast<size_t>(rank)]);
    return pack_payloads(here);
  }

  void tell_waiting(uint64_t in_job) {
    if (meeting_) return meeting_->waits(0, in_job);
    Message message;
    message.kind = MessageKind::kWaiting;
    message.sequence = in_job;
    channel_.send(0, message);
  }

  // Asks rank 0 to end the collective, and waits for its word on it: opened after all, or not.
  Result<uint64_t> give_up(Ending ending, Collective collective, uint64_t in_job, uint64_t number) {
    if (ending == Ending::kCancelled || ending == Ending::kDeadline) {
      const Code why = ending == Ending::kCancelled ? Code::kCancelled : Code::kCommTimeout;
      if (meeting_) {
        end_for_all(0, in_job, waited_for(collective), why);
      } else {
        Message message;
        message.kind = MessageKind::kGiveUp;
        message.code = static_cast<int32_t>(why);
        message.sequence = in_job;
        message.set_text(waited_for(collective));
        channel_.send(0, message);
      }
    }
    const Deadline patience = Deadline::after(kReasonNs);
    while (!patience.passed()) {
      if (segment_.is_open(number)) return number;
      const auto opened = channel_.last_opened();
      if (opened && *opened < in_job) break;
      // The payloads of an exchange come through the leader, or not at all.
      if (opened && collective != Collective::kExchange) return number;
      if (!opened && channel_.is_lost(0) && rank() != 0) break;
      segment_.sleep(number, patience.earlier(Deadline::after(kCancelLookNs)));
    }
    if (ending == Ending::kCancelled) {
      cancelled_ = true;
      return Error(Code::kCancelled, waited_for(collective) + " was cancelled");
    }
    return channel_.fail_with(
        Error(Code::kCommTimeout, fmt::format("{} did not answer about {} within the deadline of "
                                              "{}",
                                              name(0), waited_for(collective), name(rank())))
            .with_rank(0));
  }

  // --- On rank 0 ---

  Status meet_nodes(int from, Collective collective, uint64_t in_job, const std::string& payloads) {
    if (!meeting_) return {};
    const bool here = nodes_.node_of(from) == 0;
    return meeting_->arrive(
        from, collective, in_job,
        here ? payloads_here(opens_next_.load(std::memory_order_acquire)) : payloads);
  }

  void end_for_all(int from, uint64_t in_job, const std::string& what, Code why) {
    if (!meeting_) return;
    if (why == Code::kCommTimeout && meetings_.load(std::memory_order_acquire) == in_job) {
      // Of its own node rank 0 knows who is there, as soon as it is there itself.
      const std::vector<int> late = segment_.missing(opens_next_.load(std::memory_order_acquire));
      for (const int rank : nodes_.on(0)) {
        if (!std::binary_search(late.begin(), late.end(), rank)) meeting_->waits(rank, in_job);
      }
    }
    if (auto error = meeting_->give_up(from, in_job, what, why)) {
      channel_.fail(*std::move(error));
    }
  }

  void tell_open(uint64_t in_job, const std::string& payloads) {
    Message message;
    message.kind = MessageKind::kOpen;
    message.sequence = in_job;
    message.payload = payloads;
    for (int node = 1; node < node_count(); ++node) channel_.send(nodes_.leader(node), message);
    open_here(in_job, payloads);
  }

  void hold_unless(Status status) {
    if (!status) hold(std::move(status).error());
  }

  // --- On every leader ---

  // All ranks here have arrived, so that opens_next_ is what they wait at.
  void open_here(uint64_t in_job, std::string_view packed) {
    const uint64_t number = opens_next_.load(std::memory_order_acquire);
    const auto payloads = unpack_payloads(packed, static_cast<size_t>(size()));
    if (!payloads || rank() != leader() || in_job != meetings_.load(std::memory_order_acquire)) {
      return channel_.fail(
          Error(Code::kCommProtocol, name(0) + " opened a collective that makes no sense here")
              .with_rank(0));
    }
    for (int other = 0; other < size(); ++other) {
      if (nodes_.node_of(other) != node())
        segment_.put_payload(number, other, (*payloads)[static_cast<size_t>(other)]);
    }
    segment_.open(number);
  }

  int leader() const { return nodes_.leader(node()); }

  Ending ending_of(uint64_t number, const Limits& limits) const {
    if (channel_.failed()) return Ending::kFailed;
    if (first_that_left(number) >= 0) return Ending::kLeft;
    if (limits.cancelled()) return Ending::kCancelled;
    if (limits.deadline.passed()) return Ending::kDeadline;
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
      if (channel_.left(rank)) return rank;
    }
    return -1;
  }

  Error end(Ending ending, Collective collective, uint64_t number) {
    switch (ending) {
      case Ending::kCancelled:
        cancelled_ = true;
        // To those who are not here: on other nodes, or somewhere else.
        channel_.fail(
            Error(Code::kCommAborted, name(rank()) + " cancelled its wait").with_rank(rank()));
        return Error(Code::kCancelled, waited_for(collective) + " was cancelled");
      case Ending::kDeadline:
        return timed_out(collective, number);
      case Ending::kLeft: {
        const int rank = first_that_left(number);
        return channel_.fail_with(
            Error(Code::kCommAborted, name(rank) + " has finalized the group while others go on")
                .with_rank(rank));
      }
      default:
        return channel_.fail_with(
            Error(Code::kCommAborted, "the group has failed"));  // with its own reason
    }
  }

  // By another rank, whose reason is here already or on its way; a cancelled one sends none.
  Error broken_off(Collective collective) {
    const Deadline until = Deadline::after(kReasonNs);
    while (!channel_.failed() && !until.passed()) {
      for (const int rank : nodes_.on(node())) {
        if (!segment_.has_cancelled(rank)) continue;
        return channel_.fail_with(
            Error(Code::kCommAborted, name(rank) + " cancelled its wait").with_rank(rank));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return channel_.fail_with(Error(
        Code::kCommAborted, fmt::format("another rank broke off {}", waited_for(collective))));
  }

  void spin(uint64_t number) const {
    if (oversubscribed_) return;
    const Deadline end = Deadline::after(kSpinNs);
    while (!segment_.is_open(number) && !end.passed()) {
      for (int i = 0; i < 16; ++i) spin_pause();
    }
  }

  Error out_of_order(Collective collective, int other) {
    hold(Error(Code::kCommProtocol, fmt::format("{} is in {} while {} is in {}", name(other),
                                                collective_name(segment_.collective(other)),
                                                name(rank()), collective_name(collective)))
             .with_rank(other));
    const Deadline patience = Deadline::after(kReasonNs);
    while (!channel_.failed() && !patience.passed())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return channel_.fail_with(Error(Code::kCommAborted, "the group has failed"));
  }

  Error timed_out(Collective collective, uint64_t number) {
    const std::vector<int> missing = segment_.missing(number);
    std::string who;
    for (const int rank : missing) who += fmt::format("{}{}", who.empty() ? "" : ", ", name(rank));
    if (missing.empty()) who = "the last rank";  // just now, too late
    const int first = missing.empty() ? -1 : missing.front();
    return channel_.fail_with(
        Error(Code::kCommTimeout, fmt::format("{} did not arrive at {} within the deadline of {}",
                                              who, waited_for(collective), name(rank())))
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
    announce(++shares_, segment);
    return made;
  }

  void announce(uint64_t sequence, const ControlChannel::Segment& segment) {
    Message message;
    message.kind = MessageKind::kSegment;
    message.sequence = sequence;
    message.bytes = segment.bytes;
    message.code = static_cast<int32_t>(segment.code);
    message.set_text(segment.text);
    for (const int rank : nodes_.on(node())) channel_.send(rank, message, segment.file.get());
  }

  Result<SharedMemory> make_and_map(int64_t bytes, Descriptor* file) {
    AMXT_ASSIGN(*file, make_memory_file("amxtrain", bytes));
    AMXT_ASSIGN(std::byte* const data, map_memory_file(*file, bytes));
    interleave_memory(data, bytes);
    return adopt(data, bytes);
  }

  Result<SharedMemory> take(const std::string& what, int64_t bytes, const Limits& limits) {
    auto segment = channel_.wait_for_segment(++shares_, limits);
    if (!segment && segment.error().code() == Code::kTimeout) {
      return channel_.fail_with(
          Error(Code::kCommTimeout,
                fmt::format("{} did not offer shared memory {} within the deadline of {}",
                            name(leader()), what, name(rank())))
              .with_rank(leader()));
    }
    if (!segment) return std::move(segment).error();
    // The leader reports its own failure, and a difference is everyone's.
    if (segment->code != Code::kOk || segment->bytes != bytes || bytes == 0) return SharedMemory();
    if (!segment->file) return Error(Code::kLimit, "no file descriptor left to take it with");
    AMXT_ASSIGN(std::byte* const data, map_memory_file(segment->file, bytes));
    return adopt(data, bytes);
  }

  // Each rank of the node allocates and collapses its part of the pages.
  void use_huge_pages(const SharedMemory& memory, const Limits& limits) const {
    if (memory.bytes() < kCollapseFromBytes) return;
    const int64_t pages = memory.bytes() / kHugePageBytes;
    const int64_t end = pages * (local_rank() + 1) / local_size();
    for (int64_t page = pages * local_rank() / local_size(); page < end; page += kCollapsePages) {
      if (channel_.failed() || limits.deadline.passed() || limits.cancelled()) return;
      const int64_t last = std::min(page + kCollapsePages, end);
      if (collapse_pages(memory.data(), page, last) > 0)
        return;  // no huge page free, or an old kernel
    }
  }

  // The same verdict on every rank of the node: the first that failed, else the first that asks for something else than the leader.
  Status agree(const ShareReport& own, const std::vector<std::string>& packed) const {
    std::map<int, ShareReport> reports;
    for (const int rank : nodes_.on(node()))
      reports[rank] = ShareReport::unpack(packed[static_cast<size_t>(rank)]);
    for (const auto& [rank, report] : reports) {
      if (report.code == Code::kOk) continue;
      return Error(report.code,
                   fmt::format("shared memory {}: {}: {}", own.what, name(rank), report.text))
          .with_rank(rank);
    }
    const ShareReport& first = reports[leader()];
    for (const auto& [rank, report] : reports) {
      if (report.bytes == first.bytes && report.what == first.what) continue;
      return Error(Code::kMismatch,
                   fmt::format("{} asks for {} bytes of shared memory {}, {} for {} of {}",
                               name(rank), report.bytes, report.what, name(leader()), first.bytes,
                               first.what))
          .with_rank(rank);
    }
    return {};
  }

  static bool exceeds_cpus(const std::vector<Member>& members, const std::vector<int>& here) {
    uint64_t cpus[std::size(Identity{}.cpus)] = {};
    int64_t threads = 0;
    for (const int rank : here) {
      const Member& member = members[static_cast<size_t>(rank)];
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
  Log* const log_;
  const Nodes nodes_;
  const bool oversubscribed_;
  const bool allows_unauthenticated_data_;
  bool has_warned_ = false;
  bool finalized_ = false;
  bool cancelled_ = false;
  uint64_t shares_ = 0;
  // The job's collective that this rank is at, and its number in the segment.
  std::atomic<uint64_t> meetings_{0}, opens_next_{0};
  std::mutex listener_mutex_;
  Listener listener_;
  std::optional<Meeting> meeting_;  // rank 0's, on several nodes
  mutable std::mutex ends_mutex_;
  std::deque<std::pair<uint64_t, Error>> ends_;
  CallBooks books_;
  std::mutex held_mutex_;
  std::optional<Error> held_;  // set once
  std::atomic<int64_t> held_until_{0};
  ControlSegment segment_;
  ControlChannel channel_;  // the last: its thread uses the others
};

}  // namespace

Result<std::unique_ptr<Group>> make_job_group(const LaunchInfo& launch, const GroupOptions& options,
                                              Log* log, Deadline deadline) {
  AMXT_ASSIGN(Gathering gathering, gather(launch, options, log, deadline));
  const std::vector<int> here = gathering.nodes.on(gathering.nodes.node_of(launch.rank));
  AMXT_ASSIGN(ControlSegment segment,
              ControlSegment::map(gathering.control, here, launch.rank, launch.world_size));
  auto group =
      std::make_unique<JobGroup>(launch, options, log, std::move(gathering), std::move(segment));
  AMXT_TRY(group->start());
  return std::unique_ptr<Group>(std::move(group));
}

}  // namespace amxt::comm
