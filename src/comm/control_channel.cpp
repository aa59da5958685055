#include "comm/control_channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/text.h"
#include "comm/control_segment.h"
#include "comm/handshake.h"
#include "comm/quiet_thread.h"

namespace amxt::comm {
namespace {

// The kernel closes a dying process's sockets a moment before the process counts as ended.
constexpr int kDeathGraceMs = 100;
constexpr int64_t kFarewellNs = 500'000'000;  // for what is queued when the group ends here
constexpr int kFarewellLookMs = 5;
constexpr int64_t kLookNs = 100'000'000;       // who waits for a segment looks around this often
constexpr int64_t kCancelLookNs = 10'000'000;  // and this often for a cancel
constexpr int64_t kLongestBeatNs = 1'000'000'000;

bool has_ended(const Descriptor& process, int wait_ms) {
  if (!process) return true;  // nobody can say otherwise
  pollfd entry{process.get(), POLLIN, 0};
  return poll(&entry, 1, wait_ms) > 0;
}

std::string duration_text(int64_t ns) {
  const int64_t ms = ns / 1'000'000;
  return ms % 1000 == 0 ? fmt::format("{} s", ms / 1000) : fmt::format("{} ms", ms);
}

}  // namespace

ControlChannel::ControlChannel(int rank, std::vector<Member> members, int64_t peer_timeout_ns,
                               Log* log, Owner* owner)
    : rank_(rank),
      members_(std::move(members)),
      peer_timeout_ns_(peer_timeout_ns),
      log_(log),
      owner_(owner),
      left_(members_.size()),
      lost_(members_.size()) {
  lost_[static_cast<size_t>(rank)] = true;
  for (const Member& member : members_) {
    if (!member.link || !member.link->is_stream()) continue;
    has_streams_ = true;
    // The heartbeat speaks first; this is for data that lies in the kernel.
    member.link->set_unacknowledged_timeout(peer_timeout_ns + peer_timeout_ns / 2);
  }
}

Status ControlChannel::start() {
  wake_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return fail_with(system_error("eventfd", errno));
  started_ns_ = next_beat_ns_ = monotonic_ns();
  auto thread = start_quiet_thread("amxt-comm", [this] { listen(); });
  if (!thread) return fail_with(std::move(thread).error());
  thread_ = std::move(*thread);
  return {};
}

ControlChannel::~ControlChannel() {
  if (!failed() && !leaving_) {
    Message message;
    message.kind = MessageKind::kAbort;
    message.code = static_cast<int32_t>(Code::kCommAborted);
    message.about_rank = rank_;
    message.sequence = rank_ == 0 ? owner_->last_word() : 0;
    message.set_text(rank_text(identity(rank_)) + " left the group without finalizing it");
    send_to_all(message);
  }
  if (!thread_.joinable()) return;
  stopping_.store(true, std::memory_order_release);
  eventfd_write(wake_.get(), 1);
  thread_.join();
}

bool ControlChannel::is_live(const Member& member) const {
  return member.link && !is_lost(member.identity.rank);
}

void ControlChannel::listen() {
  for (Member& member : members_) {
    for (Member::Early& early : member.early)
      handle(member, early.message, std::move(early.passed));
    member.early.clear();
  }
  std::vector<pollfd> entries;
  std::optional<Deadline> farewell;
  for (;;) {
    entries.assign(1, {wake_.get(), POLLIN, 0});
    for (const Member& member : members_) {
      const bool live = is_live(member);
      const bool full = live && member.link->has_queued();
      const bool gone = left(member.identity.rank);
      entries.push_back({live ? member.link->socket() : -1,
                         static_cast<short>(full ? POLLIN | POLLOUT : POLLIN), 0});
      entries.push_back({live && !gone ? member.process.get() : -1, POLLIN, 0});
    }
    int wait_ms = -1;
    if (has_streams_) {
      const int64_t left_ns = std::max<int64_t>(0, next_beat_ns_ - monotonic_ns());
      wait_ms = static_cast<int>((left_ns + 999'999) / 1'000'000);
    }
    const int64_t look_ns = failed() ? -1 : owner_->look();
    if (look_ns >= 0) {
      const auto look_ms = static_cast<int>((look_ns + 999'999) / 1'000'000);
      wait_ms = wait_ms < 0 ? look_ms : std::min(wait_ms, look_ms);
    }
    if (farewell) wait_ms = kFarewellLookMs;
    if (poll(entries.data(), entries.size(), wait_ms) < 0) continue;
    if (entries[0].revents != 0) {
      eventfd_t count;
      eventfd_read(wake_.get(), &count);
    }
    for (size_t i = 0; i < members_.size(); ++i) {
      const pollfd &socket = entries[1 + 2 * i], &process = entries[2 + 2 * i];
      if ((socket.revents & POLLOUT) != 0) members_[i].link->flush();
      const bool readable = (socket.revents & ~POLLOUT) != 0;
      if (readable || process.revents != 0) hear(members_[i], process.revents != 0);
    }
    beat();
    if (stopping_.load(std::memory_order_acquire)) {
      if (!farewell) farewell = Deadline::after(kFarewellNs);
      if (all_delivered() || farewell->passed()) return;
    }
  }
}

bool ControlChannel::all_delivered() const {
  return std::all_of(members_.begin(), members_.end(), [this](const Member& member) {
    return !is_live(member) || member.link->is_delivered();
  });
}

// Sends heartbeats and looks for silence. All that has come was read before: a process that was stopped itself accuses nobody.
void ControlChannel::beat() {
  for (const Member& member : members_) {
    if (!is_live(member) || !member.link->is_overfull() || failed()) continue;
    fail(Error(Code::kCommPeerLost, rank_text(member.identity) + " does not read what it is sent")
             .with_rank(member.identity.rank));
  }
  const int64_t now = monotonic_ns();
  if (!has_streams_ || now < next_beat_ns_) return;
  next_beat_ns_ =
      now + std::min(kLongestBeatNs, std::max<int64_t>(peer_timeout_ns_ / 8, 1'000'000));
  Message message;
  message.kind = MessageKind::kHeartbeat;
  for (const Member& member : members_) {
    if (!is_live(member) || !member.link->is_stream() || left(member.identity.rank)) continue;
    if (now - std::max(started_ns_, member.link->heard_ns()) > peer_timeout_ns_) {
      lost_[static_cast<size_t>(member.identity.rank)] = true;
      fail(silence_of(member));
    } else if (!member.link->has_queued()) {
      member.link->send(message);
    }
  }
}

Error ControlChannel::silence_of(const Member& member) const {
  return Error(Code::kCommPeerLost,
               fmt::format("{} has been silent for {}", rank_text(member.identity),
                           duration_text(peer_timeout_ns_)))
      .with_rank(member.identity.rank);
}

void ControlChannel::hear(Member& member, bool process_ended) {
  while (is_live(member)) {
    Message message;
    Descriptor passed;
    switch (member.link->receive(&message, &passed)) {
      case Received::kMessage:
        handle(member, message, std::move(passed));
        continue;
      case Received::kNothing:
        if (!process_ended) return;
        // A child of the dead process still holds its socket open.
        return lost(member);
      case Received::kClosed:
        return lost(member);
      case Received::kGarbage:
        return unreadable(member);
    }
  }
}

void ControlChannel::unreadable(const Member& member) {
  lost_[static_cast<size_t>(member.identity.rank)] = true;
  fail(Error(Code::kCommProtocol, rank_text(member.identity) + " sent something unreadable")
           .with_rank(member.identity.rank));
}

void ControlChannel::lost(const Member& member) {
  const int rank = member.identity.rank;
  lost_[static_cast<size_t>(rank)] = true;
  if (failed() || left(rank)) return owner_->changed();
  if (member.link->is_stream()) {
    if (member.link->close_errno() == ETIMEDOUT) return fail(silence_of(member));
    return fail(Error(Code::kCommPeerLost,
                      rank_text(member.identity) + " died or was cut off: its connection ended")
                    .with_rank(rank));
  }
  const bool died = has_ended(member.process, kDeathGraceMs);
  fail(Error(Code::kCommPeerLost,
             fmt::format("{} {}", rank_text(member.identity),
                         died ? "died" : "closed its connection without a reason"))
           .with_rank(rank));
}

void ControlChannel::handle(const Member& member, const Message& message, Descriptor passed) {
  switch (message.kind) {
    case MessageKind::kHeartbeat:
      return;
    case MessageKind::kAbort:
      if (member.identity.rank == 0) {
        last_opened_.store(static_cast<int64_t>(message.sequence & INT64_MAX),
                           std::memory_order_release);
      }
      fail(root_cause(message));
      owner_->changed();
      return;
    case MessageKind::kLeave:
      left_[static_cast<size_t>(member.identity.rank)].store(true, std::memory_order_release);
      owner_->changed();
      return;
    case MessageKind::kSegment: {
      const std::lock_guard lock(mutex_);
      segments_[message.sequence] = {std::move(passed), message.bytes,
                                     static_cast<Code>(message.code), message.get_text()};
      changed_.notify_all();
      return;
    }
    default:
      owner_->heard(member.identity.rank, message);
  }
}

Status ControlChannel::check() const {
  if (!failed()) return {};
  const std::lock_guard lock(mutex_);
  return *error_;
}

Error ControlChannel::fail_with(Error error) {
  fail(std::move(error));
  // Another thread may be about to tell of an earlier one.
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return failed(); });
  return *error_;
}

// The others are told first: whoever sees the failure here may end the process at once.
void ControlChannel::fail(Error error) {
  {
    const std::lock_guard lock(mutex_);
    if (error_) return;
    error_ = error;
  }
  Message message;
  message.kind = MessageKind::kAbort;
  message.code = static_cast<int32_t>(error.code());
  message.about_rank = error.rank();
  message.set_text(error.message());
  if (rank_ == 0) {
    message.sequence = owner_->last_word();
    last_opened_.store(static_cast<int64_t>(message.sequence), std::memory_order_release);
  }
  send_to_all(message);
  {
    const std::lock_guard lock(mutex_);
    failed_.store(true, std::memory_order_release);
    changed_.notify_all();
  }
  if (log_ != nullptr) log_->debug(fmt::format("rank {}: group ended: {}", rank_, error.message()));
  owner_->changed();
}

std::optional<uint64_t> ControlChannel::last_opened() const {
  const int64_t count = last_opened_.load(std::memory_order_acquire);
  if (count < 0) return std::nullopt;
  return static_cast<uint64_t>(count);
}

void ControlChannel::leave() {
  leaving_ = true;
  Message message;
  message.kind = MessageKind::kLeave;
  send_to_all(message);
}

Result<ControlChannel::Segment> ControlChannel::wait_for_segment(uint64_t sequence,
                                                                 const Limits& limits) {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto found = segments_.find(sequence);
    if (found != segments_.end()) {
      Segment segment = std::move(found->second);
      segments_.erase(found);
      return segment;
    }
    if (failed()) return *error_;
    if (limits.cancelled()) return Error(Code::kCancelled, "cancelled");
    if (limits.deadline.passed())
      return Error(Code::kTimeout, "the node's leader did not answer within the deadline");
    const int64_t look_ns = limits.cancel != nullptr ? kCancelLookNs : kLookNs;
    const int64_t ns = std::min(limits.deadline.left_ns(), look_ns);
    changed_.wait_for(lock, std::chrono::nanoseconds(ns));
  }
}

void ControlChannel::send(int rank, const Message& message, int passed) {
  const Member& member = members_[static_cast<size_t>(rank)];
  if (!member.link) return;
  member.link->send(message, passed);
  // The listening thread sends the rest.
  if (wake_ && (member.link->has_queued() || member.link->is_overfull()))
    eventfd_write(wake_.get(), 1);
}

void ControlChannel::kick() const { eventfd_write(wake_.get(), 1); }

void ControlChannel::send_to_all(const Message& message) {
  for (const Member& member : members_) send(member.identity.rank, message);
}

}  // namespace amxt::comm
