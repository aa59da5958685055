// Wire: bytes from rank to rank between nodes; what the algorithms between nodes and the store's traffic are written on.
//
// A send meets the receive of the same tag on the other side, in whatever order they are posted; both name the same number of bytes. A
// tag between two ranks may be used again once its transfer has completed on both sides. Posting never blocks. The memory belongs
// to the wire from the post until the wait for it succeeds, or until the wire is destroyed. A send that has completed may still be on its
// way: before a wire is destroyed in peace, its ranks pass a barrier.
//
// Thread-safety: any thread may post and wait, each transfer is waited for by one. Invariants: every wait has a deadline; after any error
// but kTimeout and kCancelled the wire is dead, all its calls give that error, and it can only be destroyed; kTimeout and kCancelled leave
// the transfer under way: wait again, or destroy the wire. Who gives up on a transfer must destroy the wire,
// and the peer will see that as a loss.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "base/result.h"

namespace amxt::comm {

class Wire {
 public:
  class Transfer;  // of the implementation
  using Pending = std::unique_ptr<Transfer>;

  struct Counters {
    int64_t sent_bytes = 0, received_bytes = 0;  // payload, completed or not
    int64_t wait_ns = 0;                         // that callers spent in wait()
  };

  virtual ~Wire() = default;
  virtual const char* name() const = 0;  // "gloo"

  virtual Result<Pending> send(int rank, uint64_t tag, const void* data, int64_t bytes) = 0;
  virtual Result<Pending> receive(int rank, uint64_t tag, void* data, int64_t bytes) = 0;
  // Errors name the peer. Also looks at group.check() and at `cancel` (may be null) at least every 100 ms.
  virtual Status wait(Transfer& transfer, Deadline deadline,
                      const std::atomic<bool>* cancel = nullptr) = 0;
  virtual Counters counters() const = 0;
  // The error that the wire is dead of, if any. Also of one whose peer is lost: that ends every wait, whoever it is for, within 100 ms.
  virtual Status check() = 0;
  // Ends all transfers, and every call of another thread, with an error: no memory of theirs is touched after it. Peers get `why`, or see a
  // loss.
  virtual void close(const Error* why = nullptr) = 0;
};

class Wire::Transfer {
 public:
  virtual ~Transfer() = default;
};

}  // namespace amxt::comm
