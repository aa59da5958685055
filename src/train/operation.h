// Operation: a piece of work that somebody else runs: it can be waited for, polled and cancelled, and
// tells its end exactly once. Engine: the one thread of a trainer that runs operations, in order.
//
// Invariants: an operation is finished exactly once; its callback fires exactly once after that, on the
// thread that finished it (or in on_done() when it was finished by then); whatever is submitted to an
// engine is finished, also when the engine ends first.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/deadline.h"
#include "base/result.h"

namespace amxt::train {

// Thread-safety: every function may be called from any thread.
class Operation {
 public:
  using Callback = std::function<void(const Status& status)>;

  Operation() = default;
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  // The operation's own status, or kTimeout when it is not finished by the deadline; it goes on then.
  Status wait(Deadline deadline) const;
  bool done() const;
  // Asks the work to end early; what it makes of that is its own affair.
  void cancel() { cancelled_.store(true, std::memory_order_release); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  const std::atomic<bool>* cancel_flag() const { return &cancelled_; }
  // kInvalidState when there is a callback already.
  Status on_done(Callback callback);

  // By whoever runs the operation, once.
  void finish(Status status);

 private:
  Status copy_status() const;

  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool done_ = false;
  bool has_callback_ = false;
  std::optional<Error> error_;  // none: well
  Callback callback_;
};

// Thread-safety: every function may be called from any thread, but the destructor from none of the
// engine's callbacks.
class Engine {
 public:
  // `cancel` is set when the work should end early.
  using Work = std::function<Status(const std::atomic<bool>& cancel)>;

  // kOutOfMemory when the thread can't be started.
  static Result<std::unique_ptr<Engine>> create();
  // Cancels what is queued and running, and waits for the running work to return.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queued work that is cancelled before its turn is finished with kCancelled and never runs.
  std::shared_ptr<Operation> submit(Work work);
  // Submits and waits. Work that is not done by the deadline is cancelled and waited for: it gives its
  // own result when it was past the point of return, else kTimeout. On the engine's own thread (in a
  // callback) kInvalidState.
  Status run(Work work, Deadline deadline);
  // Cancels what is queued and running now, not what is submitted later.
  void cancel_all();
  std::thread::id thread_id() const { return thread_.get_id(); }
  bool is_current_thread() const { return std::this_thread::get_id() == thread_id(); }

 private:
  struct Item {
    std::shared_ptr<Operation> operation;
    Work work;
  };

  Engine() = default;
  void loop();
  // Finishes an operation that is still queued as cancelled, out of its turn.
  void withdraw(const std::shared_ptr<Operation>& operation);

  std::mutex mutex_;
  std::condition_variable queued_;
  std::deque<Item> queue_;
  std::shared_ptr<Operation> running_;
  bool stop_ = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace amxt::train
