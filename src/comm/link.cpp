#include "comm/link.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/deadline.h"
#include "comm/unix_socket.h"

namespace amxt::comm {
namespace {

constexpr size_t kReadBytes = size_t{64} << 10;

bool would_block(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

}  // namespace

void Link::set_unacknowledged_timeout(int64_t ns) const {
  if (!is_stream()) return;
  const auto ms = static_cast<unsigned int>(std::clamp<int64_t>(ns / 1'000'000, 1, INT32_MAX));
  setsockopt(socket(), IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
}

bool Link::send(const Message& message, int passed) {
  Outgoing outgoing{encode(message), Descriptor()};
  const std::lock_guard lock(sending_);
  if (broken_) return false;
  if (queued_.load(std::memory_order_relaxed) > kMaxQueued) {
    overfull_.store(true, std::memory_order_release);
    return false;
  }
  // The caller's descriptor may be closed before its turn comes.
  if (passed >= 0) outgoing.passed = Descriptor(fcntl(passed, F_DUPFD_CLOEXEC, 0));
  if (passed >= 0 && !outgoing.passed) return false;
  queued_.fetch_add(outgoing.bytes.size(), std::memory_order_release);
  queue_.push_back(std::move(outgoing));
  return flush_locked();
}

bool Link::flush() {
  const std::lock_guard lock(sending_);
  return flush_locked();
}

bool Link::flush_locked() {
  while (!queue_.empty() && !broken_) {
    const Outgoing& first = queue_.front();
    const std::string_view rest = std::string_view(first.bytes).substr(sent_of_first_);
    const ssize_t sent =
        is_stream() ? ::send(socket(), rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT)
                    : send_packet(socket(), rest, first.passed.get());
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && would_block(errno)) return true;
    if (sent < 0) {
      broken_ = true;
      queue_.clear();
      queued_.store(0, std::memory_order_release);
      break;
    }
    sent_of_first_ += static_cast<size_t>(sent);
    if (sent_of_first_ < first.bytes.size()) continue;
    queued_.fetch_sub(first.bytes.size(), std::memory_order_release);
    queue_.pop_front();
    sent_of_first_ = 0;
  }
  return !broken_;
}

bool Link::is_delivered() const {
  if (has_queued()) return false;
  int left = 0;
  return !is_stream() || ioctl(socket(), SIOCOUTQ, &left) != 0 || left == 0;
}

Received Link::closed(int error) {
  ended_ = true;
  close_errno_ = error;
  return Received::kClosed;
}

Received Link::receive(Message* message, Descriptor* passed) {
  if (ended_) return Received::kClosed;
  return is_stream() ? receive_stream_message(message) : receive_packet_message(message, passed);
}

Received Link::receive_packet_message(Message* message, Descriptor* passed) {
  char bytes[kMessageHeaderBytes + kMaxSmallPayload];
  // A peer that closed with our packets unread shows as one ECONNRESET in front of what it sent.
  for (int resets = 0;;) {
    const ssize_t got = receive_packet(socket(), bytes, sizeof bytes, passed);
    if (got < 0 && would_block(errno)) return Received::kNothing;
    if (got < 0 && errno == ECONNRESET && resets++ == 0) continue;
    if (got <= 0) return closed(got < 0 ? errno : 0);
    heard_ns_ = monotonic_ns();
    const auto count = static_cast<size_t>(got);
    const auto expected = message_bytes({bytes, std::min(count, sizeof bytes)});
    if (count > sizeof bytes || expected != count) return Received::kGarbage;
    *message = decode({bytes, count});
    return Received::kMessage;
  }
}

Received Link::receive_stream_message(Message* message) {
  for (;;) {
    const std::string_view whole = std::string_view(incoming_).substr(begin_);
    if (whole.size() >= kMessageHeaderBytes) {
      const auto expected = message_bytes(whole);
      if (!expected || *expected > kMessageHeaderBytes + max_payload_) return Received::kGarbage;
      if (whole.size() >= *expected) {
        *message = decode(whole.substr(0, *expected));
        begin_ += *expected;
        if (begin_ == incoming_.size()) {
          incoming_.clear();
          if (incoming_.capacity() > 4 * kReadBytes) incoming_.shrink_to_fit();
          begin_ = 0;
        }
        return Received::kMessage;
      }
    }
    if (begin_ > 0) {
      incoming_.erase(0, begin_);
      begin_ = 0;
    }
    char bytes[kReadBytes];
    const ssize_t got = recv(socket(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && would_block(errno)) return Received::kNothing;
    if (got <= 0) return closed(got < 0 ? errno : 0);
    heard_ns_ = monotonic_ns();
    incoming_.append(bytes, static_cast<size_t>(got));
  }
}

}  // namespace amxt::comm
