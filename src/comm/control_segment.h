// ControlSegment: the shared memory by which the ranks of a node meet: who has arrived, and a payload of each rank of the job.
//
// Invariants: every rank of the node passes the same collectives in the same order, numbered from 1; nobody passes number n before all
// have arrived at it. Whether collective n is passed is decided once for all, by one word: on a job of one node opened by the last to
// arrive or broken off by anyone who can't wait any more; on several nodes opened by the node's leader when rank 0 says so. A broken word
// stays. No lock lies in shared memory, so that a rank may die anywhere. A payload of collective n stays until all have arrived at n + 1.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/launch.h"
#include "comm/socket.h"

namespace amxt::comm {

// What a rank arrives for; all must say the same.
enum class Collective : uint32_t { kBarrier = 1, kExchange, kShare, kFinalize, kCollectives };
const char* collective_name(Collective collective);
const char* a_collective(Collective collective);  // "a barrier", "an exchange"
Error payload_error(size_t bytes);                // of an exchange beyond kMaxPayload

class ControlSegment {
 public:
  static constexpr int kMaxLocalRanks = comm::kMaxLocalRanks;
  static constexpr size_t kMaxPayload = 64 << 10;
  static int64_t bytes_for(int world_size);
  // Of the payloads of a whole job, with their lengths.
  static size_t max_payloads(int world_size);

  // `ranks`: those of the node, ascending. Ranks are named by their number in the job everywhere.
  static Result<ControlSegment> map(const Descriptor& file, std::vector<int> ranks, int rank,
                                    int world_size);
  ControlSegment(ControlSegment&& other) noexcept;
  ~ControlSegment();

  struct Arrival {
    uint64_t number = 0;
    bool last =
        false;  // everyone else is there: disagrees() may be asked, then open() must be called
  };
  // `payload` is at most kMaxPayload bytes.
  Arrival arrive(Collective collective, std::string_view payload);
  // A rank that arrived at the last collective for something else, or -1.
  int disagrees() const;
  void open(uint64_t number);  // without effect when it is broken
  // False when it is open: then all pass it, this rank too.
  bool break_off(uint64_t number);
  bool is_broken(uint64_t number) const;
  bool is_open(uint64_t number) const;
  // Sleeps until it may be open, the deadline, or wake(); spurious returns are allowed.
  void sleep(uint64_t number, Deadline deadline) const;
  void wake() const;

  std::vector<int> missing(uint64_t number) const;
  Collective collective(int rank) const;
  // Why it is broken, when nobody failed: said before break_off(), taken back when that comes too late.
  void set_cancelled(bool cancelled);
  bool has_cancelled(int rank) const;
  uint64_t next_number() const { return number_ + 1; }
  // Of a rank of another node; by the leader, between the node's last arrival and open().
  void put_payload(uint64_t number, int rank, std::string_view bytes);
  // Everyone's payloads of collective `number`, by rank; valid until this rank arrives again.
  std::vector<std::string> payloads(uint64_t number) const;

 private:
  struct Slot;
  struct Layout;
  ControlSegment(std::byte* data, std::vector<int> ranks, int rank, int world_size);
  Slot& slot(int rank) const;
  char* payload(uint64_t number, int rank) const;

  Layout* layout_ = nullptr;
  std::vector<int> ranks_;
  int rank_ = 0;
  int world_size_ = 0;
  uint64_t number_ = 0;
};

}  // namespace amxt::comm
