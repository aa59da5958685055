#include "train/bench_kernels.h"

namespace amxt::train {

namespace {

struct Entry {
  std::string_view name;
  Bench* run;
};

constexpr Entry kEntries[] = {{"gemm", bench_gemm},           {"attention", bench_attention},
                              {"optimizer", bench_optimizer}, {"head", bench_head},
                              {"norms", bench_norms},         {"layer", bench_layer}};

}  // namespace

Bench* kernel_bench(std::string_view name) {
  for (const Entry& entry : kEntries) {
    if (entry.name == name) return entry.run;
  }
  return nullptr;
}

std::string kernel_bench_names() {
  std::string names;
  for (const Entry& entry : kEntries) {
    names += names.empty() ? "" : ", ";
    names += entry.name;
  }
  return names;
}

}  // namespace amxt::train
