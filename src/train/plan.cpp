#include "train/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "base/cpu.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "train/step.h"

namespace amxt::train {
namespace {

// A process before its first tensor, and what kernels keep per thread (packing, JIT code). Measured: docs/memory.md.
constexpr int64_t kProcessBytes = int64_t{48} << 20;
constexpr int64_t kThreadBytes = int64_t{16} << 20;
// Activations that a step may take before it recomputes more or cuts waves, when the machine has the room.
constexpr int64_t kEasyActivations = int64_t{1} << 30;

const char* keep_text(model::Keep keep) {
  switch (keep) {
    case model::Keep::kInputs:
      return "inputs";
    case model::Keep::kAttention:
      return "attention";
    case model::Keep::kAll:
      return "all";
  }
  return "?";
}

struct Choice {
  int64_t wave;
  model::Keep keep;
};

// From the fastest to the smallest.
std::vector<Choice> choices(const EffectiveOptions& options) {
  std::vector<model::Keep> keeps = {model::Keep::kAll, model::Keep::kAttention,
                                    model::Keep::kInputs};
  if (options.keep != Keep::kAuto)
    keeps = {static_cast<model::Keep>(static_cast<int>(options.keep) - 1)};
  std::vector<int64_t> waves;
  if (options.wave > 0) {
    waves = {std::min(options.wave, options.accumulate)};
  } else {
    for (int64_t parts = 1; parts <= options.accumulate; parts *= 2) {
      const int64_t wave = (options.accumulate + parts - 1) / parts;
      if (waves.empty() || waves.back() != wave) waves.push_back(wave);
      if (options.gradient_type == GradientType::kBFloat16) break;  // waves add up in fp32
    }
    if (waves.back() != 1 && options.gradient_type != GradientType::kBFloat16) waves.push_back(1);
  }
  std::vector<Choice> all;
  for (int64_t wave : waves) {
    for (model::Keep keep : keeps) all.push_back({wave, keep});
  }
  return all;
}

// Deals that a node sees at a time: the one in use and what is fetched ahead, as far as live parameters allow; at least one, and no more
// than a forward pass needs.
int window_slots(const store::Layout& layout, const EffectiveOptions& options) {
  const int64_t deal = layout.largest_deal();
  const int64_t ahead = (options.prefetch_parameters + deal - 1) / deal;
  const int64_t live = std::max<int64_t>(1, options.live_parameters / deal);
  return static_cast<int>(std::clamp<int64_t>(1 + ahead, 1, std::min(live, layout.deals())));
}

template <typename E>
MemoryPlan plan_for(const model::ModelConfig& config, const EffectiveOptions& options,
                    const store::Layout& layout, const comm::Nodes& nodes, int threads,
                    Choice choice) {
  MemoryPlan plan;
  const int world = layout.owners();
  int ranks = 0, largest = 0;
  for (int node = 0; node < nodes.count(); ++node) {
    if (nodes.local_size(node) <= ranks) continue;
    ranks = nodes.local_size(node);
    largest = node;
  }
  plan.ranks = ranks;
  plan.world = world;
  plan.nodes = nodes.count();
  plan.threads = threads;
  plan.wave = choice.wave;
  plan.waves = (options.accumulate + choice.wave - 1) / choice.wave;
  plan.keep = choice.keep;
  const bool bf16_gradients =
      sizeof(E) == 2 && options.gradient_type != GradientType::kFloat32 && plan.waves == 1;
  plan.gradient_dtype = bf16_gradients ? DType::kBF16 : DType::kF32;
  plan.wire_gradient_dtype = options.wire_type == GradientType::kAuto       ? plan.gradient_dtype
                             : options.wire_type == GradientType::kBFloat16 ? DType::kBF16
                                                                            : DType::kF32;
  plan.weights =
      store::Parameters<E>::home_elements(layout, nodes, largest) * static_cast<int64_t>(sizeof(E));
  if (plan.nodes > 1) {
    plan.window_slots = window_slots(layout, options);
    plan.window = store::Window::shared_bytes(layout, sizeof(E), plan.window_slots);
    for (int rank = 0; rank < world && !options.forward_only; ++rank) {
      plan.exchange = std::max(plan.exchange, store::GradientExchange::bytes_needed(
                                                  layout, nodes, rank, plan.wire_gradient_dtype));
    }
  }
  plan.arena = StepRunner<E>::arena_bytes(config, options, ranks, world, plan.wave, layout);
  int64_t elements = 0;
  for (int rank = 0; rank < world; ++rank)
    elements = std::max(elements, layout.private_elements(rank));
  if (!options.forward_only) {
    plan.low_bits = sizeof(E) == 2 ? elements * 2 : 0;
    plan.moments = elements * 8;
    plan.gradients = elements * dtype_bytes(plan.gradient_dtype);
  }
  plan.kept = StepRunner<E>::kept_bytes(config, options, plan.wave, plan.keep);
  plan.scratch =
      StepRunner<E>::scratch_bytes(config, options, layout.order(), ranks * plan.wave, threads);
  plan.overhead = kProcessBytes + threads * kThreadBytes;
  return plan;
}

void find_limit(const EffectiveOptions& options, const std::optional<int64_t>& node_memory_bytes,
                MemoryPlan* plan) {
  if (node_memory_bytes) {
    plan->limit_bytes = *node_memory_bytes;
    plan->limit_name = "memory given for a node";
    return;
  }
  const CpuLimits limits = cpu_limits();
  plan->limit_bytes = limits.memory_available_bytes;
  plan->limit_name = "memory available on the machine";
  // What the group has in its page cache can be given back, and its usage counts it: only the limit itself is firm.
  if (limits.cgroup_memory_bytes > 0 && limits.cgroup_memory_bytes < plan->limit_bytes) {
    plan->limit_bytes = limits.cgroup_memory_bytes;
    plan->limit_name = "memory limit of the cgroup";
  }
  if (options.memory_limit_bytes > 0 && options.memory_limit_bytes < plan->limit_bytes) {
    plan->limit_bytes = options.memory_limit_bytes;
    plan->limit_name = "memory limit given";
  }
}

}  // namespace

comm::Nodes even_nodes(int world, int nodes) {
  comm::Nodes all;
  for (int node = 0; node < nodes; ++node) {
    all.nodes.emplace_back();
    const int count = world / nodes + (node < world % nodes ? 1 : 0);
    for (int local = 0; local < count; ++local) {
      all.nodes.back().push_back(static_cast<int>(all.ranks.size()));
      all.ranks.push_back({node, local, {}, {}});
    }
  }
  return all;
}

Result<MemoryPlan> make_plan(const model::ModelConfig& config, const EffectiveOptions& options,
                             const comm::Nodes& nodes, int threads,
                             std::optional<int64_t> node_memory_bytes) {
  if (config.sliding_window > 0 && options.sequence_length > config.sliding_window) {
    return Error(Code::kUnsupported,
                 fmt::format("sequence length {} is longer than the model's sliding_window of {}; "
                             "attention within a window is not "
                             "implemented",
                             options.sequence_length, config.sliding_window));
  }
  const bool bf16_compute = options.compute_type == ComputeType::kBFloat16;
  if (!bf16_compute && options.gradient_type == GradientType::kBFloat16) {
    return Error(Code::kInvalidArgument, "gradients in bfloat16 need compute in bfloat16");
  }
  const int64_t waves =
      options.wave > 0 ? (options.accumulate + options.wave - 1) / options.wave : 1;
  if (options.gradient_type == GradientType::kBFloat16 && waves > 1) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("gradient_dtype bfloat16: needs one wave; wave {} of {} micro-batches makes {}",
                    options.wave, options.accumulate, waves));
  }
  const store::Layout layout(config, static_cast<int>(nodes.ranks.size()),
                             store::Layout::order_for(config, bf16_compute));
  const std::vector<Choice> all = choices(options);
  std::optional<MemoryPlan> least;  // what is refused is the smallest that there is
  for (const bool easy : {true, false}) {
    for (const Choice& choice : all) {
      MemoryPlan plan = bf16_compute
                            ? plan_for<bf16>(config, options, layout, nodes, threads, choice)
                            : plan_for<float>(config, options, layout, nodes, threads, choice);
      find_limit(options, node_memory_bytes, &plan);
      const int64_t activations = plan.arena + plan.ranks * plan.kept;
      const int64_t state =
          plan.weights + plan.ranks * (plan.low_bits + plan.moments + plan.gradients);
      const bool small = activations <= std::max(kEasyActivations, state / 4);
      if (plan.peak_bytes_per_node() <= plan.limit_bytes && (small || !easy)) return plan;
      if (!least || plan.peak_bytes_per_node() < least->peak_bytes_per_node()) least = plan;
    }
  }
  return *least;
}

Result<MemoryPlan> agree_on_plan(const MemoryPlan& mine, const model::ModelConfig& config,
                                 EffectiveOptions options, comm::Group& group, Deadline deadline) {
  Json choice = Json::array({mine.wave, static_cast<int>(mine.keep)});
  AMXT_ASSIGN(const std::vector<std::string> all,
              checkpoint::agree(group, Result<std::string>(choice.dump()), deadline));
  int64_t wave = mine.wave;
  int keep = static_cast<int>(mine.keep);
  for (const std::string& text : all) {
    AMXT_ASSIGN(const Json other, parse_json(text));
    wave = std::min(wave, other[0].get<int64_t>());
    keep = std::min(keep, other[1].get<int>());
  }
  if (wave == mine.wave && keep == static_cast<int>(mine.keep)) return mine;
  options.wave = wave;
  options.keep = static_cast<Keep>(keep + 1);
  return make_plan(config, options, group.nodes(), mine.threads);
}

Status fits(const MemoryPlan& plan) {
  const int64_t need = plan.peak_bytes_per_node();
  if (need <= plan.limit_bytes) return {};
  return Error(Code::kLimit,
               fmt::format("the job needs {} ({} shared, {} in each of {}), more than the {} of {}",
                           bytes_text(static_cast<uint64_t>(need)),
                           bytes_text(static_cast<uint64_t>(plan.shared_bytes())),
                           bytes_text(static_cast<uint64_t>(plan.private_bytes())),
                           counted(plan.ranks, "rank"), plan.limit_name,
                           bytes_text(static_cast<uint64_t>(plan.limit_bytes))));
}

std::string plan_json(const model::ModelConfig& config, const EffectiveOptions& options,
                      const MemoryPlan& plan, const std::vector<std::string>& notes) {
  Json json;
  json["parameters"] = model::parameter_count(config);
  json["ranks"] = plan.world;
  json["nodes"] = plan.nodes;
  json["threads"] = plan.threads;
  json["compute_dtype"] = compute_type_name(options.compute_type);
  json["gradient_dtype"] = plan.gradient_dtype == DType::kBF16 ? "bfloat16" : "float32";
  json["sequence_length"] = options.sequence_length;
  json["micro_batch"] = options.micro_batch;
  json["accumulate"] = options.accumulate;
  json["global_batch"] = options.micro_batch * options.accumulate * plan.world;
  json["wave"] = plan.wave;
  json["waves"] = plan.waves;
  json["keep"] = keep_text(plan.keep);
  Json parts = Json::array();
  const auto part = [&](const char* name, bool shared, int64_t bytes) {
    Json entry;
    entry["name"] = name;
    entry["shared"] = shared;
    entry["bytes"] = bytes;
    parts.push_back(std::move(entry));
  };
  part("weights", true, plan.weights);
  if (plan.nodes > 1) part("window of weights", true, plan.window);
  part("arena of a step", true, plan.arena);
  part("low bits of master weights", false, plan.low_bits);
  part("moments", false, plan.moments);
  part("gradients", false, plan.gradients);
  if (plan.nodes > 1) part("gradients between nodes", false, plan.exchange);
  part("kept activations", false, plan.kept);
  part("scratch", false, plan.scratch);
  part("process", false, plan.overhead);
  json["parts"] = std::move(parts);
  json["private_bytes_per_rank"] = plan.private_bytes();
  json["shared_bytes_per_node"] = plan.shared_bytes();
  json["peak_bytes_per_rank"] = plan.peak_bytes_per_rank();
  json["peak_bytes_per_node"] = plan.peak_bytes_per_node();
  json["limit_bytes"] = plan.limit_bytes;
  json["limit"] = plan.limit_name;
  json["fits"] = plan.peak_bytes_per_node() <= plan.limit_bytes;
  json["notes"] = notes;
  return json.dump();
}

}  // namespace amxt::train
