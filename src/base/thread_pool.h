// ThreadPool: the threads that run all kernels. Pinned, spin briefly, then sleep on a futex; safe to create and destroy any
// number of times, no global state.
//
// Thread-safety: run() is called by one thread at a time (the trainer's engine thread), which works along as thread 0.
// Invariant: which thread runs a task never changes a result; tasks are cut by the problem, never by the number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/function_ref.h"
#include "base/result.h"
#include "base/trace.h"

namespace amxt {

class ThreadPool {
 public:
  struct Options {
    int threads = 1;  // including the caller of run()
    std::vector<int>
        cpus;  // CPU of each thread; empty: unpinned. cpus[0] is for the caller (pin_caller)
    int spin_us = 30;  // 0 when threads of all ranks exceed the cores
  };

  // kOutOfMemory (with the errno text) when a thread can't be started.
  static Result<std::unique_ptr<ThreadPool>> create(const Options& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i, thread) for each i in [0, tasks), in any order on any thread; returns when all are done. task must not throw.
  void run(int64_t tasks, FunctionRef<void(int64_t task, int thread)> task);

  // Cuts [0, count) into blocks of `block` (fixed by the caller, never by the thread count) and runs them.
  void run_blocks(int64_t count, int64_t block, FunctionRef<void(int64_t begin, int64_t end)> task);

  // Where operations that run on this pool record what they do; null: nowhere. Set by the thread that calls run().
  Trace* trace() const { return trace_; }
  void set_trace(Trace* trace) { trace_ = trace; }

  // Pins the calling thread to cpus[0], if there are cpus.
  void pin_caller() const;

 private:
  explicit ThreadPool(const Options& options) : options_(options) {}
  void work(int thread);
  void take_tasks(int thread);

  Options options_;
  Trace* trace_ = nullptr;
  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> busy_{0};
  std::atomic<bool> stop_{false};
  int64_t tasks_ = 0;
  const FunctionRef<void(int64_t, int)>* task_ = nullptr;
};

}  // namespace amxt
