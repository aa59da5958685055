// CollectiveCall: what all ranks of a call must agree about, and how it reads in messages.
#pragma once

#include <cstdint>
#include <string>

#include "base/dtype.h"

namespace amxt::comm {

struct CollectiveCall {
  const char* name = "";  // of static storage
  DType dtype = DType::kU8;
  int32_t op = -1;         // ReduceOp, or none
  int32_t root = -1;       // or none
  int64_t count = kNone;   // elements in all
  uint64_t parts = 0;      // hash of the counts of all ranks, or 0
  bool on_device = false;  // the memory of GPUs
  // Of a split, each rank its own: not compared.
  int32_t color = 0, key = 0;

  static CollectiveCall barrier() { return {"barrier"}; }
  static CollectiveCall split(int32_t color, int32_t key) {
    CollectiveCall call{kSplit};
    call.color = color;
    call.key = key;
    return call;
  }

  std::string text() const;  // "all_reduce of 16 F32, sum"
  // Of all that is compared.
  uint64_t digest() const;

  static constexpr int64_t kNone = -1, kVaries = -2;  // from rank to rank
  static constexpr const char* kSplit = "split";
};

}  // namespace amxt::comm
