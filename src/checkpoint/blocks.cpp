#include "checkpoint/blocks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/buffer.h"
#include "comm/quiet_thread.h"

namespace amxt::checkpoint {
namespace {

constexpr auto kLook = std::chrono::milliseconds(20);  // how late a cancel may be seen
constexpr int64_t kReportEveryNs = 100'000'000;
constexpr int64_t kPage = 4096;

// The thread that waits may be pinned to one CPU, and a new thread inherits that: back to those of the process.
void leave_pinned_cpu() {
  cpu_set_t cpus;
  if (sched_getaffinity(getpid(), sizeof cpus, &cpus) == 0)
    (void)sched_setaffinity(0, sizeof cpus, &cpus);
}

using Work = FunctionRef<Status(size_t block, std::span<std::byte> buffer)>;

// One call of run_blocks. Invariant: fields below `mutex_` are touched with it held.
class BlockRun {
 public:
  BlockRun(const BlockList& list, const char* what, Work work)
      : list_(list), what_(what), work_(work), item_done_(list.items.size(), 0) {
    for (const BlockList::Item& item : list.items) total_ += item.bytes;
  }

  Status run(const Progress& progress, Deadline deadline, const std::atomic<bool>* cancel);

 private:
  Status start_threads();
  void take_blocks(std::span<std::byte> buffer);
  void note_error(size_t block, Error error);
  Error cancelled() const { return Error(Code::kCancelled, fmt::format("{}: cancelled", what_)); }
  Error late() const {
    return Error(Code::kTimeout, fmt::format("{}: the deadline has passed", what_));
  }
  Status report(const Progress& progress, size_t item);
  // Waits until `item` is done, or nothing more will be; reports on the way.
  Status follow(size_t item, const Progress& progress, Deadline deadline,
                const std::atomic<bool>* cancel);

  const BlockList& list_;
  const char* what_;
  Work work_;
  int64_t total_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<std::thread> threads_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stop_{false};

  std::mutex mutex_;
  std::condition_variable moved_;
  std::vector<int64_t> item_done_;
  int64_t done_ = 0;
  size_t error_block_ = 0;
  std::optional<Error> error_;
};

void BlockRun::note_error(size_t block, Error error) {
  stop_.store(true);
  const std::lock_guard lock(mutex_);
  if (!error_ || block < error_block_) {
    error_.emplace(std::move(error));
    error_block_ = block;
  }
  moved_.notify_one();
}

void BlockRun::take_blocks(std::span<std::byte> buffer) {
  leave_pinned_cpu();
  while (!stop_.load()) {
    const size_t block = next_.fetch_add(1);
    if (block >= list_.blocks.size()) return;
    if (Status status = work_(block, buffer); !status)
      return note_error(block, std::move(status).error());
    const std::lock_guard lock(mutex_);
    done_ += list_.blocks[block].bytes;
    item_done_[list_.blocks[block].item] += list_.blocks[block].bytes;
    moved_.notify_one();
  }
}

Status BlockRun::start_threads() {
  const size_t wanted = std::min<size_t>(kBlockThreads, list_.blocks.size());
  for (size_t i = 0; i < wanted; ++i) {
    AMXT_ASSIGN(Buffer buffer, Buffer::allocate(list_.buffer_bytes, "a block of file data"));
    buffers_.push_back(std::move(buffer));
  }
  for (const Buffer& buffer : buffers_) {
    auto thread = comm::start_quiet_thread(
        "amxt-file", [this, &buffer] { take_blocks(buffer.span<std::byte>()); });
    if (thread) {
      threads_.push_back(std::move(*thread));
    } else if (threads_.empty()) {
      return std::move(thread).error();
    } else {
      break;  // fewer threads do the same work
    }
  }
  return {};
}

Status BlockRun::report(const Progress& progress, size_t item) {
  if (!progress) return {};
  ProgressReport report;
  {
    const std::lock_guard lock(mutex_);
    report.item_done = item_done_[item];
    report.done = done_;
  }
  report.item = static_cast<int64_t>(item);
  report.items = static_cast<int64_t>(list_.items.size());
  report.item_total = list_.items[item].bytes;
  report.total = total_;
  report.name = list_.items[item].name;
  return progress(report);
}

Status BlockRun::follow(size_t item, const Progress& progress, Deadline deadline,
                        const std::atomic<bool>* cancel) {
  int64_t reported = monotonic_ns();
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      const auto settled = [&] { return error_ || item_done_[item] >= list_.items[item].bytes; };
      if (!settled()) moved_.wait_for(lock, kLook);
      if (settled()) return {};
    }
    if (cancel != nullptr && cancel->load()) return cancelled();
    if (deadline.passed()) return late();
    if (monotonic_ns() - reported >= kReportEveryNs) {
      AMXT_TRY(report(progress, item));
      reported = monotonic_ns();
    }
  }
}

Status BlockRun::run(const Progress& progress, Deadline deadline, const std::atomic<bool>* cancel) {
  Status status;
  if (cancel != nullptr && cancel->load()) status = cancelled();
  if (status && deadline.passed()) status = late();
  if (status) status = start_threads();
  for (size_t item = 0; status && item < list_.items.size(); ++item) {
    status = report(progress, item);
    if (status) status = follow(item, progress, deadline, cancel);
    if (status && !stop_.load()) status = report(progress, item);
    if (stop_.load()) break;
  }
  if (!status) stop_.store(true);
  for (std::thread& thread : threads_) thread.join();
  if (error_) return std::move(*error_);
  return status;
}

}  // namespace

Status run_blocks(const BlockList& list, const char* what, const Progress& progress,
                  Deadline deadline, const std::atomic<bool>* cancel, Work work) {
  return BlockRun(list, what, work).run(progress, deadline, cancel);
}

void drop_cache(const File& file, int64_t offset, int64_t bytes) {
  const int64_t begin = (offset + kPage - 1) / kPage * kPage,
                end = (offset + bytes) / kPage * kPage;
  if (begin < end) posix_fadvise(file.fd(), begin, end - begin, POSIX_FADV_DONTNEED);
}

}  // namespace amxt::checkpoint
