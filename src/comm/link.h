// Link: a connection to another rank, over packets (a unix socket, same machine) or a stream (TCP, any machine), that carries messages.
//
// send() is for any thread, receive() and trust() for one. Invariants: sending never blocks: what the kernel doesn't take is queued, in
// order, and goes out by flush(); queue and incoming message are bounded, and memory for a message is taken as its bytes arrive.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>

#include "base/result.h"
#include "comm/control_message.h"
#include "comm/socket.h"

namespace amxt::comm {

enum class Received { kMessage, kNothing, kClosed, kGarbage };

class Link {
 public:
  enum class Kind { kPackets, kStream };
  static constexpr size_t kMaxQueued = size_t{4} << 20;  // and two messages of the largest kind

  Link(Descriptor socket, Kind kind) : socket_(std::move(socket)), kind_(kind) {}

  int socket() const { return socket_.get(); }
  bool is_stream() const { return kind_ == Kind::kStream; }

  // From now on payloads of that length may come; kMaxSmallPayload before.
  void trust(size_t max_payload) { max_payload_ = max_payload; }
  // A stream whose peer does not acknowledge data for so long ends.
  void set_unacknowledged_timeout(int64_t ns) const;

  // False when the peer is gone, or has not read for so long that the queue is full: then the message is lost. A descriptor goes over
  // packets only.
  bool send(const Message& message, int passed = -1);
  bool flush();
  bool has_queued() const { return queued_.load(std::memory_order_acquire) > 0; }
  bool is_overfull() const { return overfull_.load(std::memory_order_acquire); }
  // Nothing queued here, nothing on its way that the peer's kernel has not taken.
  bool is_delivered() const;

  // Never blocks; kClosed and kGarbage stay.
  Received receive(Message* message, Descriptor* passed = nullptr);
  // Of the last byte that came; 0 at first.
  int64_t heard_ns() const { return heard_ns_; }
  // Why it is closed: 0 for an orderly end.
  int close_errno() const { return close_errno_; }

 private:
  struct Outgoing {
    std::string bytes;
    Descriptor passed;
  };
  bool flush_locked();
  Received receive_packet_message(Message* message, Descriptor* passed);
  Received receive_stream_message(Message* message);
  Received closed(int error);

  Descriptor socket_;
  const Kind kind_;
  size_t max_payload_ = kMaxSmallPayload;

  std::mutex sending_;
  std::deque<Outgoing> queue_;
  size_t sent_of_first_ = 0;
  std::atomic<size_t> queued_{0};  // bytes
  std::atomic<bool> overfull_{false};
  bool broken_ = false;

  std::string incoming_;
  size_t begin_ = 0;  // of the first message in `incoming_`
  int64_t heard_ns_ = 0;
  int close_errno_ = 0;
  bool ended_ = false;
};

}  // namespace amxt::comm
