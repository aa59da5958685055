#include "base/thread_pool.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <system_error>

#include "base/deadline.h"
#include "base/futex.h"

namespace amxt {
namespace {

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);  // refused in some containers: then unpinned
}

// Waits until *word differs from `seen`: spins for spin_us, then sleeps.
uint32_t wait_change(const std::atomic<uint32_t>* word, uint32_t seen, int spin_us) {
  const int64_t until = spin_us > 0 ? monotonic_ns() + spin_us * int64_t{1000} : 0;
  while (spin_us > 0) {
    for (int i = 0; i < 64; ++i) {
      if (const uint32_t now = word->load(std::memory_order_acquire); now != seen) return now;
      spin_pause();
    }
    if (monotonic_ns() >= until) break;
  }
  for (;;) {
    if (const uint32_t now = word->load(std::memory_order_acquire); now != seen) return now;
    futex_wait(word, seen, FutexScope::kPrivate, Deadline::never());
  }
}

}  // namespace

Result<std::unique_ptr<ThreadPool>> ThreadPool::create(const Options& options) {
  std::unique_ptr<ThreadPool> pool(new ThreadPool(options));
  for (int thread = 1; thread < options.threads; ++thread) {
    try {
      pool->workers_.emplace_back([raw = pool.get(), thread] { raw->work(thread); });
    } catch (const std::system_error& e) {
      return Error(Code::kOutOfMemory, fmt::format("thread {} of {} could not be started: {}",
                                                   thread + 1, options.threads, e.what()));
    }
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  futex_wake_all(&generation_, FutexScope::kPrivate);
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::pin_caller() const {
  if (!options_.cpus.empty()) pin_to(options_.cpus[0]);
}

void ThreadPool::take_tasks(int thread) {
  for (;;) {
    const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    (*task_)(task, thread);
  }
}

void ThreadPool::work(int thread) {
  if (!options_.cpus.empty())
    pin_to(options_.cpus[static_cast<size_t>(thread) % options_.cpus.size()]);
  uint32_t seen = 0;
  for (;;) {
    seen = wait_change(&generation_, seen, options_.spin_us);
    if (stop_.load(std::memory_order_relaxed)) return;
    take_tasks(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1)
      futex_wake_all(&busy_, FutexScope::kPrivate);
  }
}

void ThreadPool::run(int64_t tasks, FunctionRef<void(int64_t, int)> task) {
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty()) {
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  task_ = &task;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  futex_wake_all(&generation_, FutexScope::kPrivate);
  take_tasks(0);
  for (uint32_t left = busy_.load(std::memory_order_acquire); left != 0;) {
    left = wait_change(&busy_, left, options_.spin_us);
  }
}

void ThreadPool::run_blocks(int64_t count, int64_t block,
                            FunctionRef<void(int64_t, int64_t)> task) {
  run((count + block - 1) / block,
      [&](int64_t i, int) { task(i * block, std::min(count, (i + 1) * block)); });
}

}  // namespace amxt
