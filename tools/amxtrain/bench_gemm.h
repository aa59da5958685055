// amxtrain bench gemm: the products of a linear layer, the library's own beside the others that it has, in turn.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "session.h"

namespace command {

struct GemmBench {
  std::vector<std::string> shapes;  // "T,N,K"
  std::optional<int64_t> repeat;
  bool as_json = false;
};

int run_gemm(const CommonOptions& common, const GemmBench& options);

}  // namespace command
