#include "train/operation.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

namespace amxt::train {

namespace {

// Third-party code may throw inside work; it ends here as a status.
Status guarded(const Engine::Work& work, const std::atomic<bool>& cancel) {
  try {
    return work(cancel);
  } catch (const std::bad_alloc&) {
    return Error(Code::kOutOfMemory, "out of memory");
  } catch (const std::exception& exception) {
    return Error(Code::kInternal, exception.what());
  }
}

}  // namespace

Status Operation::copy_status() const {
  if (error_) return Error(*error_);
  return {};
}

Status Operation::wait(Deadline deadline) const {
  std::unique_lock lock(mutex_);
  auto is_done = [this] { return done_; };
  if (deadline.is_never()) {
    changed_.wait(lock, is_done);
  } else {
    // steady_clock is CLOCK_MONOTONIC.
    const std::chrono::steady_clock::time_point until{std::chrono::nanoseconds(deadline.at_ns())};
    if (!changed_.wait_until(lock, until, is_done)) {
      return Error(Code::kTimeout, "the operation is not done by the deadline");
    }
  }
  return copy_status();
}

bool Operation::done() const {
  std::lock_guard lock(mutex_);
  return done_;
}

Status Operation::on_done(Callback callback) {
  {
    std::lock_guard lock(mutex_);
    if (has_callback_) {
      return Error(Code::kInvalidState, "the operation has a callback already");
    }
    has_callback_ = true;
    if (!done_) {
      callback_ = std::move(callback);
      return {};
    }
  }
  callback(copy_status());  // error_ does not change any more
  return {};
}

void Operation::finish(Status status) {
  Callback callback;
  {
    std::lock_guard lock(mutex_);
    assert(!done_);
    if (!status) error_ = std::move(status).error();
    done_ = true;
    callback = std::move(callback_);
    changed_.notify_all();
  }
  if (callback) callback(copy_status());
}

Result<std::unique_ptr<Engine>> Engine::create() {
  std::unique_ptr<Engine> engine(new Engine);
  try {
    engine->thread_ = std::thread([raw = engine.get()] { raw->loop(); });
  } catch (const std::system_error& error) {
    return Error(Code::kOutOfMemory, std::string("engine thread: ") + error.what(),
                 error.code().value());
  }
  return engine;
}

Engine::~Engine() {
  if (!thread_.joinable()) return;
  cancel_all();
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    queued_.notify_all();
  }
  thread_.join();
}

std::shared_ptr<Operation> Engine::submit(Work work) {
  auto operation = std::make_shared<Operation>();
  std::lock_guard lock(mutex_);
  queue_.push_back({operation, std::move(work)});
  queued_.notify_one();
  return operation;
}

Status Engine::run(Work work, Deadline deadline) {
  if (is_current_thread()) {
    return Error(Code::kInvalidState, "a blocking call inside a callback of the same trainer");
  }
  const std::shared_ptr<Operation> operation = submit(std::move(work));
  Status status = operation->wait(deadline);
  if (operation->done()) return operation->wait(Deadline::never());
  operation->cancel();
  withdraw(operation);
  Status last = operation->wait(Deadline::never());
  if (!last && last.error().code() == Code::kCancelled) return status;
  return last;
}

void Engine::withdraw(const std::shared_ptr<Operation>& operation) {
  {
    std::lock_guard lock(mutex_);
    auto is_it = [&](const Item& item) { return item.operation == operation; };
    const auto found = std::find_if(queue_.begin(), queue_.end(), is_it);
    if (found == queue_.end()) return;
    queue_.erase(found);
  }
  operation->finish(Error(Code::kCancelled, "cancelled before it began"));
}

void Engine::cancel_all() {
  std::lock_guard lock(mutex_);
  if (running_) running_->cancel();
  for (Item& item : queue_) item.operation->cancel();
}

void Engine::loop() {
  for (;;) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      queued_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      item = std::move(queue_.front());
      queue_.pop_front();
      running_ = item.operation;
      // What came in between the last cancel and the end is cancelled too.
      if (stop_) running_->cancel();
    }
    Status status = item.operation->cancelled()
                        ? Status(Error(Code::kCancelled, "cancelled before it began"))
                        : guarded(item.work, *item.operation->cancel_flag());
    item.work = nullptr;  // what it holds is gone before anyone hears of the end
    {
      std::lock_guard lock(mutex_);
      running_.reset();
    }
    item.operation->finish(std::move(status));
  }
}

}  // namespace amxt::train
