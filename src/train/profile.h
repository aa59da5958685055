// Profile: the operations of one step with the time that each took and its share of what the machine allows, as a table and as a Chrome
// trace (chrome://tracing, ui.perfetto.dev).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "base/trace.h"

namespace amxt::train {

class Profile {
 public:
  // Operations of one name together.
  struct Row {
    std::string name;
    int64_t calls = 0;
    double seconds = 0, flop = 0, bytes = 0;
    double limit_seconds =
        0;  // that the limits of products and of memory leave for it; 0: of no such work
  };

  // Measures the limits of this machine with the pool's threads, a fraction of a second; from then on the pool traces here.
  static Result<std::unique_ptr<Profile>> begin(ThreadPool* pool, Isa isa);
  ~Profile() { pool_->set_trace(nullptr); }
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // The pool traces nowhere any more.
  void end();
  // The longest first; the last is the time between operations.
  std::vector<Row> rows() const;
  std::string table(int64_t step) const;  // lines of text
  std::string chrome_trace(int rank) const;

 private:
  static constexpr size_t kEvents = 1 << 20;

  explicit Profile(ThreadPool* pool) : pool_(pool), trace_(kEvents) {}

  ThreadPool* const pool_;
  Trace trace_;
  std::string peak_name_;
  double flop_per_second_ = 0, bytes_per_second_ = 0;
  int64_t begin_ns_ = 0, end_ns_ = 0;
};

}  // namespace amxt::train
