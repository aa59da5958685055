// amxtrain bench collectives: what reductions and exchanges between the ranks take, beside what the memory allows.
#pragma once

#include <string>
#include <vector>

#include "session.h"

namespace command {

struct CollectivesBench {
  int ranks = 2;
  std::vector<int64_t> sizes{4 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20};  // bytes
  int64_t repeat = 7;
  bool as_json = false;
};

// Alone, it starts its own ranks: this process becomes `amxtrain launch`.
int run_collectives(const CommonOptions& common, const CollectivesBench& options);

}  // namespace command
