// Ranks as threads of one test: ThreadGroups(world).run(body) runs body(group) on a thread for each rank, each with a Group over real
// shared memory (every rank maps its own view). ThreadGroups(nodes), with the node of each rank, splits them over several nodes: shared
// memory reaches the ranks of one node only, and a wire of this process' own memory joins the nodes.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/group.h"
#include "comm/memory_file.h"
#include "support/memory_wire.h"

namespace amxt::test {

class ThreadGroups {
 public:
  explicit ThreadGroups(int world) : ThreadGroups(std::vector<int>(static_cast<size_t>(world))) {}
  explicit ThreadGroups(const std::vector<int>& node_of_rank)
      : world_(static_cast<int>(node_of_rank.size())) {
    for (int rank = 0; rank < world_; ++rank) {
      const int node = node_of_rank[static_cast<size_t>(rank)];
      if (nodes_.count() <= node) nodes_.nodes.resize(static_cast<size_t>(node) + 1);
      auto& there = nodes_.nodes[static_cast<size_t>(node)];
      nodes_.ranks.push_back({node, static_cast<int>(there.size()), "test", "127.0.0.1"});
      there.push_back(rank);
    }
    listeners_.resize(static_cast<size_t>(world_));
  }

  std::shared_ptr<comm::Group> group(int rank) { return std::make_shared<Rank>(this, rank); }

  // Instead of the memory wire.
  using WireMaker =
      std::function<Result<std::unique_ptr<comm::Wire>>(comm::Group&, const comm::Limits& limits)>;
  void set_wire_maker(WireMaker maker) { wire_maker_ = std::move(maker); }

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
      launch_.rank = rank;
      launch_.world_size = all->world_;
      launch_.local_rank = all->nodes_.local_of(rank);
      launch_.local_world_size = all->nodes_.local_size(all->nodes_.node_of(rank));
      launch_.source = "test";
    }
    const comm::LaunchInfo& launch() const override { return launch_; }
    const comm::Nodes& nodes() const override { return all_->nodes_; }
    Result<std::unique_ptr<comm::Wire>> make_wire(const comm::Limits& limits) override {
      if (all_->wire_maker_) return all_->wire_maker_(*this, limits);
      const int index = wires_++;
      std::shared_ptr<MemoryWire::Exchange> exchange;
      {
        std::lock_guard lock(all_->mutex_);
        auto& slot = all_->wires_[index];
        if (!slot) slot = std::make_shared<MemoryWire::Exchange>();
        exchange = slot;
      }
      AMXT_TRY(barrier(limits));
      return std::unique_ptr<comm::Wire>(
          std::make_unique<MemoryWire>(rank(), std::move(exchange), [this] { return check(); }));
    }
    void set_listener(Listener listener) override {
      std::lock_guard lock(all_->listener_mutex_);
      all_->listeners_[static_cast<size_t>(rank())] = std::move(listener);
    }
    void post(int to, std::string_view message) override {
      std::lock_guard lock(all_->listener_mutex_);
      const Listener& listener = all_->listeners_[static_cast<size_t>(to)];
      if (listener) listener(rank(), message);
    }
    Result<comm::SharedMemory> share(std::string_view, int64_t bytes,
                                     const comm::Limits& limits) override {
      const int index = shares_++;
      std::shared_ptr<comm::Descriptor> file;
      {
        std::lock_guard lock(all_->mutex_);
        std::shared_ptr<comm::Descriptor>& slot = all_->files_[{node(), index}];
        if (!slot) {
          AMXT_ASSIGN(comm::Descriptor made, comm::make_memory_file("test", bytes));
          slot = std::make_shared<comm::Descriptor>(std::move(made));
        }
        file = slot;
      }
      AMXT_ASSIGN(std::byte * data, comm::map_memory_file(*file, bytes));
      AMXT_TRY(barrier(limits));
      return adopt(data, bytes);
    }
    Status barrier(const comm::Limits& limits) override { return all_->wait(limits); }
    Result<std::vector<std::string>> exchange(std::string_view payload,
                                              const comm::Limits& limits) override {
      {
        std::lock_guard lock(all_->mutex_);
        all_->payloads_[exchanges_ & 1].resize(static_cast<size_t>(all_->world_));
        all_->payloads_[exchanges_ & 1][static_cast<size_t>(rank())] = payload;
      }
      AMXT_TRY(all_->wait(limits));
      std::vector<std::string> payloads;
      {
        std::lock_guard lock(all_->mutex_);
        payloads = all_->payloads_[exchanges_ & 1];
      }
      ++exchanges_;
      return payloads;
    }
    void tell_end(uint64_t what, const Error& why) override {
      std::lock_guard lock(all_->mutex_);
      all_->ends_.emplace(what, why);
    }
    std::optional<Error> end_of(uint64_t what) const override {
      std::lock_guard lock(all_->mutex_);
      const auto found = all_->ends_.find(what);
      if (found == all_->ends_.end()) return std::nullopt;
      return found->second;
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
    Status finalize(const comm::Limits& limits) override { return barrier(limits); }
    bool oversubscribed() const override { return true; }

   private:
    ThreadGroups* all_;
    comm::LaunchInfo launch_;
    int shares_ = 0;
    int wires_ = 0;
    int exchanges_ = 0;
  };

  Status wait(const comm::Limits& limits) {
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
      if (limits.cancelled()) {
        aborted_ = "a rank of the test cancelled its wait";
        changed_.notify_all();
        return Error(Code::kCancelled, "cancelled");
      }
      if (limits.deadline.passed())
        return Error(Code::kCommTimeout, "a rank of the test did not come to a barrier");
      changed_.wait_for(lock, std::chrono::milliseconds(limits.cancel != nullptr ? 5 : 50));
    }
    return {};
  }

  int world_;
  WireMaker wire_maker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  uint64_t generation_ = 0;
  std::string aborted_;
  std::map<uint64_t, Error> ends_;                                          // by what has ended
  std::map<std::pair<int, int>, std::shared_ptr<comm::Descriptor>> files_;  // by node
  std::map<int, std::shared_ptr<MemoryWire::Exchange>> wires_;
  comm::Nodes nodes_;
  std::recursive_mutex listener_mutex_;  // a listener may post
  std::vector<comm::Group::Listener> listeners_;
  std::vector<std::string> payloads_[2];
};

}  // namespace amxt::test
