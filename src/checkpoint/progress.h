// How far a long call is.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "base/result.h"

namespace amxt::checkpoint {

// Bytes are those that this rank moves. An item is a file.
struct ProgressReport {
  int64_t item = 0;  // from 0
  int64_t items = 0;
  int64_t item_done = 0, item_total = 0;
  int64_t done = 0, total = 0;
  std::string_view name;  // of the item
};

// Called by the thread that made the call: at the beginning and the end of each item, in between at most every 100 ms. An error ends
// the call with that error on all ranks. Empty: no progress is wanted.
using Progress = std::function<Status(const ProgressReport&)>;

}  // namespace amxt::checkpoint
