// amxtrain bench gemm, attention, ...: what a step is made of, each operation beside the limit of the same run.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "session.h"

namespace command {

struct KernelBench {
  std::string name;
  std::vector<std::string> shapes;
  std::optional<int64_t> repeat;
  bool as_json = false;
};

// Adds a subcommand for each to `bench`; their options, of which the parsed subcommand's were filled.
std::vector<std::pair<CLI::App*, std::shared_ptr<KernelBench>>> add_kernel_benches(
    CLI::App& bench, CommonOptions& common);

int run_kernel_bench(const CommonOptions& common, const KernelBench& options);

}  // namespace command
