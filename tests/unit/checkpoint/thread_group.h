// Ranks as threads of one test: a Group over a mutex.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/group.h"
#include "comm/wire.h"

namespace amxt::checkpoint {

// Where the ranks of one world meet.
class Meeting {
 public:
  explicit Meeting(int world) : next_(static_cast<size_t>(world)) {}

  // Everyone's payload, when all have come; nothing when one stays away for a minute.
  std::vector<std::string> meet(int rank, std::string payload) {
    std::unique_lock lock(mutex_);
    const int round = round_;
    next_[static_cast<size_t>(rank)] = std::move(payload);
    if (++here_ == static_cast<int>(next_.size())) {
      here_ = 0;
      last_ = next_;
      ++round_;
      all_here_.notify_all();
    } else if (!all_here_.wait_for(lock, std::chrono::minutes(1),
                                   [&] { return round_ != round; })) {
      return {};
    }
    return last_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  std::vector<std::string> next_, last_;
  int here_ = 0;
  int round_ = 0;
};

class ThreadGroup final : public comm::Group {
 public:
  ThreadGroup(Meeting* meeting, int rank, int world)
      : meeting_(meeting), nodes_(comm::Nodes::one(world, "test")) {
    launch_.rank = launch_.local_rank = rank;
    launch_.world_size = launch_.local_world_size = world;
  }

  const comm::LaunchInfo& launch() const override { return launch_; }
  const comm::Nodes& nodes() const override { return nodes_; }
  Result<std::unique_ptr<comm::Wire>> make_wire(const comm::Limits&) override {
    return Error(Code::kInvalidState, "one node");
  }
  void set_listener(Listener) override {}
  void post(int, std::string_view) override {}
  Result<comm::SharedMemory> share(std::string_view, int64_t bytes,
                                   const comm::Limits& limits) override {
    int fd = -1;
    if (rank() == 0) {
      fd = memfd_create("test", MFD_CLOEXEC);
      if (ftruncate(fd, bytes) != 0) return Error(Code::kOutOfMemory, "ftruncate");
    }
    AMXT_ASSIGN(const auto all, exchange(std::to_string(fd), limits));
    void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED,
                      std::stoi(all[0]), 0);
    if (data == MAP_FAILED) return Error(Code::kOutOfMemory, "mmap");
    AMXT_TRY(barrier(limits));
    if (rank() == 0) close(fd);
    return adopt(static_cast<std::byte*>(data), bytes);
  }
  Status barrier(const comm::Limits& limits) override {
    AMXT_TRY(exchange("", limits));
    return {};
  }
  Result<std::vector<std::string>> exchange(std::string_view payload,
                                            const comm::Limits&) override {
    if (payload.size() > 65536)
      return Error(Code::kInvalidArgument, "a payload of more than 64 KiB");
    auto all = meeting_->meet(rank(), std::string(payload));
    if (all.empty()) return Error(Code::kCommTimeout, "a rank stayed away");
    return all;
  }
  Status check() const override { return {}; }
  void abort(std::string_view) override {}
  Status finalize(const comm::Limits& limits) override { return barrier(limits); }
  bool oversubscribed() const override { return false; }

 private:
  Meeting* meeting_;
  comm::Nodes nodes_;
  comm::LaunchInfo launch_;
};

// Calls body(group) on a thread for each rank.
inline void run_ranks(int world, const std::function<void(comm::Group&)>& body) {
  Meeting meeting(world);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadGroup group(&meeting, rank, world);
      body(group);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace amxt::checkpoint
