// Ranks as threads of one test: run_ranks(world, body) runs body(group) on a thread for each rank, each with a Group over real shared memory
// (every rank maps its own view), and hands on the first failure.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/group.h"
#include "comm/memory_file.h"

namespace amxt::test {

class ThreadGroups {
 public:
  explicit ThreadGroups(int world) : world_(world) {}

  std::shared_ptr<comm::Group> group(int rank) { return std::make_shared<Rank>(this, rank); }

  // Runs body on every rank and waits for all.
  void run(const std::function<void(comm::Group&)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < world_; ++rank) {
      threads.emplace_back([this, rank, &body] {
        const auto own = group(rank);
        body(*own);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  class Rank final : public comm::Group {
   public:
    Rank(ThreadGroups* all, int rank) : all_(all) {
      launch_.rank = launch_.local_rank = rank;
      launch_.world_size = launch_.local_world_size = all->world_;
      launch_.source = "test";
    }
    const comm::LaunchInfo& launch() const override { return launch_; }
    Result<comm::SharedMemory> share(std::string_view, int64_t bytes, Deadline deadline) override {
      const int index = shares_++;
      std::shared_ptr<comm::Descriptor> file;
      {
        std::lock_guard lock(all_->mutex_);
        std::shared_ptr<comm::Descriptor>& slot = all_->files_[index];
        if (!slot) {
          AMXT_ASSIGN(comm::Descriptor made, comm::make_memory_file("test", bytes));
          slot = std::make_shared<comm::Descriptor>(std::move(made));
        }
        file = slot;
      }
      AMXT_ASSIGN(std::byte * data, comm::map_memory_file(*file, bytes));
      AMXT_TRY(barrier(deadline));
      return adopt(data, bytes);
    }
    Status barrier(Deadline deadline, const std::atomic<bool>* cancel = nullptr) override {
      (void)cancel;
      return all_->wait(deadline);
    }
    Result<std::vector<std::string>> exchange(std::string_view payload,
                                              Deadline deadline) override {
      {
        std::lock_guard lock(all_->mutex_);
        all_->payloads_[exchanges_ & 1].resize(static_cast<size_t>(all_->world_));
        all_->payloads_[exchanges_ & 1][static_cast<size_t>(rank())] = payload;
      }
      AMXT_TRY(all_->wait(deadline));
      std::vector<std::string> payloads;
      {
        std::lock_guard lock(all_->mutex_);
        payloads = all_->payloads_[exchanges_ & 1];
      }
      ++exchanges_;
      return payloads;
    }
    Status check() const override {
      std::lock_guard lock(all_->mutex_);
      if (all_->aborted_.empty()) return {};
      return Error(Code::kCommAborted, all_->aborted_);
    }
    void abort(std::string_view reason) override {
      std::lock_guard lock(all_->mutex_);
      all_->aborted_ = reason;
      all_->changed_.notify_all();
    }
    Status finalize(Deadline deadline) override { return barrier(deadline); }
    bool oversubscribed() const override { return true; }

   private:
    ThreadGroups* all_;
    comm::LaunchInfo launch_;
    int shares_ = 0;
    int exchanges_ = 0;
  };

  Status wait(Deadline deadline) {
    std::unique_lock lock(mutex_);
    const uint64_t seen = generation_;
    if (++arrived_ == world_) {
      arrived_ = 0;
      ++generation_;
      changed_.notify_all();
      return {};
    }
    while (generation_ == seen) {
      if (!aborted_.empty()) return Error(Code::kCommAborted, aborted_);
      if (deadline.passed())
        return Error(Code::kCommTimeout, "a rank of the test did not come to a barrier");
      changed_.wait_for(lock, std::chrono::milliseconds(50));
    }
    return {};
  }

  int world_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  uint64_t generation_ = 0;
  std::string aborted_;
  std::map<int, std::shared_ptr<comm::Descriptor>> files_;
  std::vector<std::string> payloads_[2];
};

}  // namespace amxt::test
