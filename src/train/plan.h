// MemoryPlan: what a job needs, computed before anything is allocated, and the choices that follow from it (wave, what is kept, type of
// gradients). The step allocates by it; so what it says is what is used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/dtype.h"
#include "base/result.h"
#include "comm/group.h"
#include "model/config.h"
#include "model/decoder.h"
#include "store/layout.h"
#include "train/options.h"

namespace amxt::train {

struct MemoryPlan {
  int ranks = 1;  // of the node that needs most
  int world = 1;
  int nodes = 1;
  int threads = 1;
  int64_t wave = 1;   // micro-batches that pass a layer together
  int64_t waves = 1;  // of a step
  model::Keep keep = model::Keep::kInputs;
  DType gradient_dtype = DType::kF32;
  DType wire_gradient_dtype = DType::kF32;  // between nodes
  int window_slots = 0;                     // deals of weights at a time; 0 on one node

  // Bytes. Shared: of the node, once. Private: of the rank that needs most.
  int64_t weights = 0;  // shared: of all rows on one node, of the node's own on several
  int64_t window = 0;   // shared: deals of weights of all nodes
  int64_t arena = 0;    // shared: pairs (X, dY) of a wave of all ranks
  int64_t low_bits = 0;
  int64_t moments = 0;
  int64_t gradients = 0;
  int64_t exchange = 0;  // parts of gradients on their way between nodes
  int64_t kept = 0;      // layer inputs and what else is kept
  int64_t scratch = 0;   // kernels, head, optimizer
  int64_t overhead = 0;  // process, libraries, JIT code: measured once, see docs/memory.md

  int64_t private_bytes() const {
    return low_bits + moments + gradients + exchange + kept + scratch + overhead;
  }
  int64_t shared_bytes() const { return weights + window + arena; }
  int64_t peak_bytes_per_rank() const {
    return private_bytes() + shared_bytes() / ranks;
  }  // proportional
  int64_t peak_bytes_per_node() const { return private_bytes() * ranks + shared_bytes(); }

  // What may be used of the machine, its cgroup and the option, and which of them it is.
  int64_t limit_bytes = 0;
  std::string limit_name;
};

// How a job's ranks lie on its nodes, where only numbers matter: as evenly as it goes, the first nodes have one more.
comm::Nodes even_nodes(int world, int nodes);

// Chooses and adds up, for this machine or for one with `node_memory_bytes`. Never fails for lack of memory: the smallest choice is
// returned, and fits() says that it does not fit.
Result<MemoryPlan> make_plan(const model::ModelConfig& config, const EffectiveOptions& options,
                             const comm::Nodes& nodes, int threads,
                             std::optional<int64_t> node_memory_bytes = std::nullopt);
inline Result<MemoryPlan> make_plan(const model::ModelConfig& config,
                                    const EffectiveOptions& options, int ranks, int threads,
                                    std::optional<int64_t> node_memory_bytes = std::nullopt) {
  return make_plan(config, options, even_nodes(ranks, 1), threads, node_memory_bytes);
}

// Collective. Ranks may see different memory, and choose differently: all take the smallest choice of any, so that they go through a step
// alike. `mine` is this rank's; the new one may not fit less than it did.
Result<MemoryPlan> agree_on_plan(const MemoryPlan& mine, const model::ModelConfig& config,
                                 EffectiveOptions options, comm::Group& group, Deadline deadline);

// kLimit with the numbers: "the job needs 96.3 GiB (2 ranks), the machine has 22.1 GiB available: ...".
Status fits(const MemoryPlan& plan);

// The plan as a JSON object; `notes` are those of resolve() and of the ds_config.
std::string plan_json(const model::ModelConfig& config, const EffectiveOptions& options,
                      const MemoryPlan& plan, const std::vector<std::string>& notes);

}  // namespace amxt::train
