// Window: where a node of several sees whole deals of weights. Each node keeps its own rows only ("home"); a deal's missing rows are
// fetched from the nodes that own them into a slot of the window, ahead of use, each local rank its part;
// its own rows are copied beside them.
//
// One window per rank over memory that the node shares. begin() says which deals acquire() will ask for, in order, the same on all
// ranks; a thread of each rank fetches ahead as far as slots are free. A slot is free again when every local rank has released its deal.
// Thread-safety: one thread calls; the fetching thread is inside. Home rows of this rank must not change between begin() and drain().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/result.h"
#include "comm/group.h"
#include "store/layout.h"
#include "store/traffic.h"

namespace amxt::store {

class Window {
 public:
  // Bytes of the node for `slots` deals.
  static int64_t shared_bytes(const Layout& layout, int64_t element_bytes, int slots);

  // Collective on the node. `home`: the first byte of this rank's rows in its private order.
  static Result<std::unique_ptr<Window>> create(const Layout* layout, comm::Group* group,
                                                Traffic* traffic, const std::byte* home,
                                                int64_t element_bytes, int slots,
                                                Deadline deadline);
  ~Window();
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  // After Traffic::connect(). Collective on the node: all counts begin anew.
  Status restart(Deadline deadline);
  // Gives up what is under way, before Traffic::disconnect().
  void stop();

  void begin(std::span<const int64_t> deals);
  // The next deal of begin(): its first row, its tensors as in the shared order (Layout::deal_offset). Valid until release().
  Result<const std::byte*> acquire(int64_t deal, Poll poll);
  void release(int64_t deal);
  // Waits until this rank has sent all that others take of it.
  Status drain(Poll poll);

 private:
  struct Flight {
    uint64_t item;
    Traffic::Pending receives;
  };
  struct Counts;

  Window(const Layout* layout, comm::Group* group, Traffic* traffic, const std::byte* home,
         int64_t element_bytes, int slots)
      : layout_(layout),
        group_(group),
        traffic_(traffic),
        home_(home),
        element_bytes_(element_bytes),
        slots_(slots) {}
  void serve();
  Status fetch_next(std::deque<Flight>* flights);
  Status post(uint64_t item, int64_t deal, Flight* flight);
  std::byte* slot(uint64_t item) const;
  Counts& counts(uint64_t item) const;
  bool is_free(uint64_t item) const;
  std::byte* place(std::byte* at, int64_t deal, const OwnedRange& range) const;
  int64_t range_bytes(const OwnedRange& range) const;

  const Layout* layout_;
  comm::Group* group_;
  Traffic* traffic_;
  const std::byte* home_;
  const int64_t element_bytes_;
  const int slots_;
  comm::SharedMemory memory_;
  int64_t slot_bytes_ = 0;
  uint64_t acquired_ = 0, released_ = 0;  // items

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<int64_t> deals_;  // not acquired yet
  std::deque<int64_t> todo_;   // not begun by the thread yet
  uint64_t next_item_ = 0;     // the thread's
  Traffic::Pending sends_;     // the thread's
  std::atomic<bool> stopping_{false};
  bool idle_ = true;  // the thread has nothing under way, and begins nothing before it is woken
  bool quit_ = false;
  std::optional<Error> error_;
};

}  // namespace amxt::store
