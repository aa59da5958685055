// A Wire between ranks that are threads of one test. A transfer is copied by whoever waits for it first, or comes second.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "comm/wire.h"

namespace amxt::test {

class MemoryWire final : public comm::Wire {
 public:
  struct Post {
    const void* from = nullptr;
    void* to = nullptr;
    int64_t bytes = 0;
    bool is_send = false;  // the one that came first; an empty message has no memory
    bool done = false;
  };
  // What all ranks of one wire share.
  struct Exchange {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::tuple<int, int, uint64_t>, std::shared_ptr<Post>> waiting;  // from, to, tag
    int lost = -1;  // a rank that closed its wire: the end of all of them here
    std::unique_ptr<Error> why;
  };

  MemoryWire(int rank, std::shared_ptr<Exchange> exchange, std::function<Status()> check)
      : rank_(rank), exchange_(std::move(exchange)), check_(std::move(check)) {}

  ~MemoryWire() override { MemoryWire::close(); }

  const char* name() const override { return "memory"; }

  Result<Pending> send(int rank, uint64_t tag, const void* data, int64_t bytes) override {
    sent_bytes_ += bytes;
    return post(rank_, rank, tag, data, nullptr, bytes);
  }
  Result<Pending> receive(int rank, uint64_t tag, void* data, int64_t bytes) override {
    received_bytes_ += bytes;
    return post(rank, rank_, tag, nullptr, data, bytes);
  }
  Status wait(Transfer& transfer, Deadline deadline, const std::atomic<bool>* cancel) override {
    const auto& posted = static_cast<Posted&>(transfer);
    const auto& own = posted.post;
    std::unique_lock lock(exchange_->mutex);
    while (!own->done) {
      if (deadline.passed()) {
        return Error(Code::kTimeout, "a transfer with rank " + std::to_string(posted.peer) +
                                         " did not end in time");
      }
      if (cancel != nullptr && *cancel) return Error(Code::kCancelled, "cancelled");
      lock.unlock();
      AMXT_TRY(check_());
      lock.lock();
      if (!own->done && exchange_->lost >= 0) {
        // A reason is given time to come, as a real wire does.
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        AMXT_TRY(check_());
        lock.lock();
        return gone();
      }
      if (!own->done) exchange_->changed.wait_for(lock, std::chrono::milliseconds(10));
    }
    return {};
  }
  Counters counters() const override { return {sent_bytes_, received_bytes_, 0}; }
  Status check() override {
    const std::lock_guard lock(exchange_->mutex);
    if (exchange_->lost >= 0) return gone();
    return {};
  }
  void close(const Error* why = nullptr) override {
    const std::lock_guard lock(exchange_->mutex);
    if (exchange_->lost < 0 && why != nullptr) exchange_->why = std::make_unique<Error>(*why);
    exchange_->lost = rank_;
    exchange_->waiting.clear();
    exchange_->changed.notify_all();
  }

 private:
  struct Posted final : Transfer {
    Posted(std::shared_ptr<Post> p, int with) : post(std::move(p)), peer(with) {}
    std::shared_ptr<Post> post;
    int peer;
  };

  Error gone() const {
    if (exchange_->why) return *exchange_->why;
    return Error(Code::kCommPeerLost,
                 "rank " + std::to_string(exchange_->lost) + " closed its wire")
        .with_rank(exchange_->lost);
  }

  Result<Pending> post(int from, int to, uint64_t tag, const void* source, void* target,
                       int64_t bytes) {
    const std::lock_guard lock(exchange_->mutex);
    if (exchange_->lost >= 0) return gone();
    const auto key = std::make_tuple(from, to, tag);
    auto found = exchange_->waiting.find(key);
    std::shared_ptr<Post> meeting;
    if (found == exchange_->waiting.end()) {
      meeting = std::make_shared<Post>(Post{source, target, bytes, from == rank_, false});
      exchange_->waiting[key] = meeting;
      return Pending(std::make_unique<Posted>(std::move(meeting), from == rank_ ? to : from));
    }
    meeting = found->second;
    if (meeting->is_send == (from == rank_)) return Error(Code::kInternal, "a tag is posted twice");
    if (meeting->bytes != bytes) return Error(Code::kInternal, "a transfer of two sizes");
    exchange_->waiting.erase(found);
    const void* data = source != nullptr ? source : meeting->from;
    void* into = target != nullptr ? target : meeting->to;
    if (bytes > 0) std::memcpy(into, data, static_cast<size_t>(bytes));
    meeting->done = true;
    exchange_->changed.notify_all();
    return Pending(std::make_unique<Posted>(std::move(meeting), from == rank_ ? to : from));
  }

  const int rank_;
  const std::shared_ptr<Exchange> exchange_;
  const std::function<Status()> check_;
  std::atomic<int64_t> sent_bytes_{0}, received_bytes_{0};
};

}  // namespace amxt::test
