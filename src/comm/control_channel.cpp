#include "comm/control_channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "base/text.h"
#include "comm/quiet_thread.h"

namespace amxt::comm {
namespace {

// The kernel closes a dying process's sockets a moment before the process counts as ended.
constexpr int kDeathGraceMs = 100;

bool has_ended(const Descriptor& process, int wait_ms) {
  if (!process) return true;  // nobody can say otherwise
  pollfd entry{process.get(), POLLIN, 0};
  return poll(&entry, 1, wait_ms) > 0;
}

}  // namespace

ControlChannel::ControlChannel(int rank, std::vector<Member> members, Log* log,
                               std::function<void()> on_change)
    : rank_(rank),
      members_(std::move(members)),
      silent_(members_.size()),
      log_(log),
      on_change_(std::move(on_change)),
      left_(members_.size()) {
  silent_[static_cast<size_t>(rank)] = true;
}

Result<std::unique_ptr<ControlChannel>> ControlChannel::start(int rank, std::vector<Member> members,
                                                              Log* log,
                                                              std::function<void()> on_change) {
  std::unique_ptr<ControlChannel> channel(
      new ControlChannel(rank, std::move(members), log, std::move(on_change)));
  channel->stop_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!channel->stop_) return channel->fail_with(system_error("eventfd", errno));
  auto thread = start_quiet_thread("amxt-comm", [raw = channel.get()] { raw->listen(); });
  if (!thread) return channel->fail_with(std::move(thread).error());
  channel->thread_ = std::move(*thread);
  return channel;
}

ControlChannel::~ControlChannel() {
  if (thread_.joinable()) {
    eventfd_write(stop_.get(), 1);
    thread_.join();
  }
  if (failed() || leaving_) return;
  Message message;
  message.kind = MessageKind::kAbort;
  message.code = static_cast<int32_t>(Code::kCommAborted);
  message.about_rank = rank_;
  message.set_text(rank_text(identity(rank_)) + " left the group without finalizing it");
  broadcast(message);
}

void ControlChannel::listen() {
  std::vector<pollfd> entries;
  for (;;) {
    entries.assign(1, {stop_.get(), POLLIN, 0});
    for (size_t i = 0; i < members_.size(); ++i) {
      const bool silent = silent_[i];
      const bool gone = left_[i].load(std::memory_order_relaxed);
      entries.push_back({silent ? -1 : members_[i].socket.get(), POLLIN, 0});
      entries.push_back({silent || gone ? -1 : members_[i].process.get(), POLLIN, 0});
    }
    if (poll(entries.data(), entries.size(), -1) < 0) continue;
    if (entries[0].revents != 0) return;
    for (size_t i = 0; i < members_.size(); ++i) {
      const bool process_ended = entries[2 + 2 * i].revents != 0;
      if (entries[1 + 2 * i].revents != 0 || process_ended) hear(members_[i], process_ended);
    }
  }
}

void ControlChannel::hear(Member& member, bool process_ended) {
  const auto index = static_cast<size_t>(member.identity.rank);
  for (;;) {
    Message message;
    Descriptor passed;
    switch (receive_message(member.socket.get(), &message, &passed)) {
      case Received::kMessage:
        handle(member, message, std::move(passed));
        continue;
      case Received::kNothing:
        if (!process_ended) return;
        // A child of the dead process still holds its socket open.
        silent_[index] = true;
        return lost(member);
      case Received::kClosed:
        silent_[index] = true;
        return lost(member);
      case Received::kGarbage:
        silent_[index] = true;
        fail(Error(Code::kCommProtocol, rank_text(member.identity) + " sent something unreadable")
                 .with_rank(member.identity.rank));
        return;
    }
  }
}

void ControlChannel::lost(const Member& member) {
  if (failed() || left(member.identity.rank)) return;
  const bool died = has_ended(member.process, kDeathGraceMs);
  fail(Error(Code::kCommPeerLost,
             fmt::format("{} {}", rank_text(member.identity),
                         died ? "died" : "closed its connection without a reason"))
           .with_rank(member.identity.rank));
}

void ControlChannel::handle(const Member& member, const Message& message, Descriptor passed) {
  switch (message.kind) {
    case MessageKind::kAbort:
      fail(
          Error(static_cast<Code>(message.code), message.get_text()).with_rank(message.about_rank));
      return;
    case MessageKind::kLeave:
      left_[static_cast<size_t>(member.identity.rank)].store(true, std::memory_order_release);
      on_change_();
      return;
    case MessageKind::kSegment: {
      const std::lock_guard lock(mutex_);
      segments_[message.sequence] = {std::move(passed), message.bytes,
                                     static_cast<Code>(message.code), message.get_text()};
      changed_.notify_all();
      return;
    }
    default:
      return;
  }
}

Status ControlChannel::check() const {
  if (!failed()) return {};
  const std::lock_guard lock(mutex_);
  return *error_;
}

Error ControlChannel::fail_with(Error error) {
  fail(std::move(error));
  const std::lock_guard lock(mutex_);
  return *error_;
}

void ControlChannel::fail(Error error) {
  {
    const std::lock_guard lock(mutex_);
    if (error_) return;
    error_ = error;
    failed_.store(true, std::memory_order_release);
    changed_.notify_all();
  }
  Message message;
  message.kind = MessageKind::kAbort;
  message.code = static_cast<int32_t>(error.code());
  message.about_rank = error.rank();
  message.set_text(error.message());
  broadcast(message);
  if (log_ != nullptr) log_->debug(fmt::format("rank {}: group ended: {}", rank_, error.message()));
  on_change_();
}

void ControlChannel::leave() {
  leaving_ = true;
  Message message;
  message.kind = MessageKind::kLeave;
  broadcast(message);
}

void ControlChannel::send_segment(uint64_t sequence, const Segment& segment) {
  Message message;
  message.kind = MessageKind::kSegment;
  message.sequence = sequence;
  message.bytes = segment.bytes;
  message.code = static_cast<int32_t>(segment.code);
  message.set_text(segment.text);
  broadcast(message, segment.file.get());
}

Result<ControlChannel::Segment> ControlChannel::wait_for_segment(uint64_t sequence,
                                                                 Deadline deadline) {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto found = segments_.find(sequence);
    if (found != segments_.end()) {
      Segment segment = std::move(found->second);
      segments_.erase(found);
      return segment;
    }
    if (error_) return *error_;
    if (deadline.passed())
      return Error(Code::kTimeout, "rank 0 did not answer within the deadline");
    const int64_t ns = std::min<int64_t>(deadline.left_ns(), 100'000'000);
    changed_.wait_for(lock, std::chrono::nanoseconds(ns));
  }
}

void ControlChannel::broadcast(const Message& message, int passed) {
  for (const Member& member : members_) {
    if (member.socket) send_message(member.socket.get(), message, passed);
  }
}

}  // namespace amxt::comm
