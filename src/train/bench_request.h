// bench_request: what the options of a benchmark say: the shapes that it measures, and how often.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace amxt::train {

using BenchShape = std::vector<int64_t>;

// A benchmark's name, the sides of its shapes with the largest value of each, and the shapes when none are given.
struct BenchKind {
  struct Side {
    const char* name;
    int64_t most;
  };
  const char* name;
  std::vector<Side> sides;
  std::vector<BenchShape> shapes;
};

struct BenchRequest {
  std::vector<BenchShape> shapes;
  int64_t repeat = 5;
};

// `options`: a JSON object or empty; "shapes", an array of shapes (arrays of whole numbers from 1), and "repeat", the rounds.
Result<BenchRequest> parse_bench_request(const BenchKind& kind, std::string_view options);

// kInvalidArgument in the benchmark's name.
Error bench_invalid(const BenchKind& kind, std::string_view what);

// kOutOfMemory naming the shape when its operands take more than is available.
Status check_bench_memory(const BenchKind& kind, const BenchShape& shape, int64_t bytes);

}  // namespace amxt::train
