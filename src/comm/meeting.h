// Meeting: rank 0's book of the collectives of a job of several nodes. Its word is the truth: a collective has opened when it says so, and
// after close() nothing opens any more.
//
// Thread-safe. Invariants: collectives are numbered from 1 and open one after the other, each when every node has arrived at it for the
// same thing; `open` is called under the lock, so that openings and the close are seen in one order.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "comm/control_segment.h"
#include "comm/nodes.h"

namespace amxt::comm {

// Payloads of several ranks in one: each with its length; nothing when all are empty.
std::string pack_payloads(std::span<const std::string> payloads);
// Nothing when it is not that.
std::optional<std::vector<std::string>> unpack_payloads(std::string_view packed, size_t count);

class Meeting {
 public:
  // Tells the nodes' leaders: collective `number` has opened, with these payloads of all ranks.
  using Open = std::function<void(uint64_t number, const std::string& payloads)>;
  using Name = std::function<std::string(int rank)>;
  Meeting(const Nodes& nodes, Name name, Open open);

  // The last rank of its node has arrived; `payloads` are packed, of the node's ranks. An error is the end of the group.
  Status arrive(int rank, Collective collective, uint64_t number, const std::string& payloads);
  // A rank is there and waits for the others of its node.
  void waits(int rank, uint64_t number);
  // A rank can't wait any more for what it calls `what`: none, when it has opened already or anything is closed; else what the group ends
  // with.
  std::optional<Error> give_up(int rank, uint64_t number, const std::string& what, Code why);
  // How many have opened.
  uint64_t close();

 private:
  struct Arrival {
    int rank = -1;  // none yet
    Collective collective{};
    std::vector<std::string> payloads;
  };
  std::vector<int> missing(uint64_t number) const;
  std::string all_payloads() const;

  const Nodes& nodes_;
  const Name name_;
  const Open open_;
  std::mutex mutex_;
  bool closed_ = false;
  uint64_t opened_ = 0;
  std::vector<Arrival> arrivals_;   // at opened_ + 1, by node
  std::vector<uint64_t> waits_at_;  // by rank
};

}  // namespace amxt::comm
