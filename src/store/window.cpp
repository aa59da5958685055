#include "store/window.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/futex.h"
#include "comm/quiet_thread.h"

namespace amxt::store {
namespace {

constexpr int64_t kLookNs = 100'000'000;
constexpr uint64_t kRangesPerDeal = 256;  // a deal's ranges of one owner are fewer: one per tensor

int64_t aligned(int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

// Of a slot, shared by the node. Both only grow (and wrap round): use u of a slot is full when `filled` has reached (u + 1) x local
// ranks, and is over when `released` has.
struct alignas(64) Window::Counts {
  std::atomic<uint32_t> filled;
  std::atomic<uint32_t> released;
};

int64_t Window::shared_bytes(const Layout& layout, int64_t element_bytes, int slots) {
  return aligned(static_cast<int64_t>(sizeof(Counts)) * slots) +
         aligned(layout.largest_deal() * element_bytes) * slots;
}

Result<std::unique_ptr<Window>> Window::create(const Layout* layout, comm::Group* group,
                                               Traffic* traffic, const std::byte* home,
                                               int64_t element_bytes, int slots,
                                               Deadline deadline) {
  std::unique_ptr<Window> window(new Window(layout, group, traffic, home, element_bytes, slots));
  window->slot_bytes_ = aligned(layout->largest_deal() * element_bytes);
  AMXT_ASSIGN(window->memory_, group->share("the window of weights",
                                            shared_bytes(*layout, element_bytes, slots), deadline));
  AMXT_ASSIGN(window->thread_,
              comm::start_quiet_thread("amxt-fetch", [raw = window.get()] { raw->serve(); }));
  return window;
}

Window::~Window() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

Window::Counts& Window::counts(uint64_t item) const {
  return reinterpret_cast<Counts*>(memory_.data())[item % static_cast<uint64_t>(slots_)];
}

std::byte* Window::slot(uint64_t item) const {
  return memory_.data() + aligned(static_cast<int64_t>(sizeof(Counts)) * slots_) +
         static_cast<int64_t>(item % static_cast<uint64_t>(slots_)) * slot_bytes_;
}

int64_t Window::range_bytes(const OwnedRange& range) const {
  return layout_->stored_elements(range) * element_bytes_;
}

std::byte* Window::place(std::byte* at, int64_t deal, const OwnedRange& range) const {
  const int64_t columns = layout_->specs()[static_cast<size_t>(range.tensor)].columns;
  return at + (layout_->shared_offset(range.tensor) + range.row_begin * columns -
               layout_->deal_offset(deal)) *
                  element_bytes_;
}

Status Window::restart(Deadline deadline) {
  stop();
  AMXT_TRY(group_->barrier(deadline));  // nobody uses the counts any more
  if (group_->local_rank() == 0) {
    for (int i = 0; i < slots_; ++i) {
      counts(static_cast<uint64_t>(i)).filled.store(0);
      counts(static_cast<uint64_t>(i)).released.store(0);
    }
  }
  AMXT_TRY(group_->barrier(deadline));
  const std::lock_guard lock(mutex_);
  acquired_ = released_ = next_item_ = 0;
  error_.reset();
  stopping_ = false;
  return {};
}

void Window::stop() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  deals_.clear();
  todo_.clear();
  changed_.notify_all();
  changed_.wait(lock, [this] { return idle_; });
}

void Window::begin(std::span<const int64_t> deals) {
  const std::lock_guard lock(mutex_);
  deals_.insert(deals_.end(), deals.begin(), deals.end());
  todo_.insert(todo_.end(), deals.begin(), deals.end());
  changed_.notify_all();
}

Result<const std::byte*> Window::acquire(int64_t deal, Poll poll) {
  const uint64_t item = acquired_;
  {
    const std::lock_guard lock(mutex_);
    if (deals_.empty() || deals_.front() != deal) {
      return Error(Code::kInternal, fmt::format("deal {} of weights is not the next one", deal));
    }
    deals_.pop_front();
  }
  ++acquired_;
  const uint32_t full = static_cast<uint32_t>(item / static_cast<uint64_t>(slots_) + 1) *
                        static_cast<uint32_t>(group_->local_size());
  const int64_t began = monotonic_ns();
  std::atomic<uint32_t>& filled = counts(item).filled;
  for (uint32_t seen = filled.load(std::memory_order_acquire); seen != full;
       seen = filled.load(std::memory_order_acquire)) {
    AMXT_TRY(poll());
    {
      const std::lock_guard lock(mutex_);
      if (error_) return *error_;
    }
    futex_wait(&filled, seen, FutexScope::kShared, Deadline::after(kLookNs));
  }
  traffic_->count_wait(Stream::kWeights, monotonic_ns() - began);
  return slot(item);
}

void Window::release(int64_t) {
  Counts& own = counts(released_++);
  own.released.fetch_add(1, std::memory_order_acq_rel);
  futex_wake_all(&own.released, FutexScope::kShared);
}

Status Window::drain(Poll poll) {
  const int64_t began = monotonic_ns();
  std::unique_lock lock(mutex_);
  while (!(idle_ && todo_.empty()) && !error_) {
    changed_.wait_for(lock, std::chrono::nanoseconds(kLookNs));
    lock.unlock();
    AMXT_TRY(poll());
    lock.lock();
  }
  traffic_->count_wait(Stream::kWeights, monotonic_ns() - began);
  if (!error_) return {};
  lock.unlock();
  AMXT_TRY(poll());  // says why, when a peer has left because the call has ended
  return *error_;
}

bool Window::is_free(uint64_t item) const {
  const uint32_t before = static_cast<uint32_t>(item / static_cast<uint64_t>(slots_)) *
                          static_cast<uint32_t>(group_->local_size());
  return counts(item).released.load(std::memory_order_acquire) == before;
}

// Posts what others take of this rank and what it fetches for its node, and copies its own rows.
Status Window::post(uint64_t item, int64_t deal, Flight* flight) {
  std::byte* const at = slot(item);
  const auto tag = [item](size_t range) {
    return Tag{Stream::kWeights, item * kRangesPerDeal + range};
  };
  for (const int owner : traffic_->served()) {
    const std::span<const OwnedRange> ranges = layout_->ranges(owner, deal);
    for (size_t i = 0; i < ranges.size(); ++i) {
      AMXT_TRY(traffic_->receive(tag(i), owner, place(at, deal, ranges[i]), range_bytes(ranges[i]),
                                 &flight->receives));
    }
  }
  const int me = group_->rank();
  const std::span<const OwnedRange> own = layout_->ranges(me, deal);
  for (int node = 0; node < group_->node_count(); ++node) {
    if (node == group_->node()) continue;
    for (size_t i = 0; i < own.size(); ++i) {
      AMXT_TRY(traffic_->send(tag(i), traffic_->partner(node, me),
                              home_ + own[i].private_offset * element_bytes_, range_bytes(own[i]),
                              &sends_));
    }
  }
  for (const OwnedRange& range : own) {
    std::memcpy(place(at, deal, range), home_ + range.private_offset * element_bytes_,
                static_cast<size_t>(range_bytes(range)));
  }
  return {};
}

// Begins what has room, or else waits for the oldest that is under way; a short time at most.
Status Window::fetch_next(std::deque<Flight>* flights) {
  int64_t deal = -1;
  {
    const std::lock_guard lock(mutex_);
    if (!todo_.empty() && is_free(next_item_)) {
      deal = todo_.front();
      todo_.pop_front();
    }
  }
  if (deal >= 0) {
    flights->push_back({next_item_, {}});
    AMXT_TRY(post(next_item_, deal, &flights->back()));
    ++next_item_;
    return {};
  }
  comm::Wire& wire = traffic_->wire();
  const auto wait = [&](comm::Wire::Pending& transfer) -> Status {
    Status status = wire.wait(*transfer, Deadline::after(kLookNs), &stopping_);
    const bool pending = !status && status.error().code() == Code::kTimeout;
    if (status) transfer.reset();
    if (pending) return {};
    return status;
  };
  if (!flights->empty()) {
    Traffic::Pending& receives = flights->front().receives;
    if (!receives.empty()) {
      AMXT_TRY(wait(receives.back()));
      if (!receives.back()) receives.pop_back();
    }
    if (receives.empty()) {
      Counts& full = counts(flights->front().item);
      full.filled.fetch_add(1, std::memory_order_acq_rel);
      futex_wake_all(&full.filled, FutexScope::kShared);
      flights->pop_front();
    }
    return {};
  }
  bool has_more = false;
  {
    const std::lock_guard lock(mutex_);
    has_more = !todo_.empty();
  }
  if (has_more) {
    std::atomic<uint32_t>& released = counts(next_item_).released;
    const uint32_t seen = released.load(std::memory_order_acquire);
    // A stop wakes nobody here, so that the wait is short.
    if (!is_free(next_item_))
      futex_wait(&released, seen, FutexScope::kShared, Deadline::after(kLookNs / 10));
    return {};
  }
  if (!sends_.empty()) {
    AMXT_TRY(wait(sends_.back()));
    if (!sends_.back()) sends_.pop_back();
  }
  return {};
}

void Window::serve() {
  std::deque<Flight> flights;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      const bool idle = todo_.empty() && flights.empty() && sends_.empty();
      if (idle || stopping_ || error_) {
        flights.clear();  // what is under way ends with the wire
        sends_.clear();
        idle_ = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return quit_ || (!stopping_ && !error_ && !todo_.empty()); });
        if (quit_) return;
        idle_ = false;
      }
    }
    Status status = fetch_next(&flights);
    if (!status && !stopping_.load()) {
      const std::lock_guard lock(mutex_);
      error_ = std::move(status).error();
    }
  }
}

}  // namespace amxt::store
