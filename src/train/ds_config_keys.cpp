#include "train/ds_config_keys.h"

#include <algorithm>
#include <vector>

namespace amxt::train {
namespace {

using enum DsUse;

constexpr std::string_view kNothingSent =
    "ranks of a node share the weights and divide the rest by rows, nodes send rows: nothing is "
    "gathered or reduced in buckets";
constexpr std::string_view kInMemory = "all state lives in the memory of the CPU";
constexpr std::string_view kLogging = "--metrics, --log-steps and --json say what is printed";
constexpr std::string_view kFp16Off = "fp16 is off";
constexpr std::string_view kSummed = "gradients are summed once, in fp32 and in a fixed order";
constexpr std::string_view kCheckpoints =
    "checkpoints have one format, checked by sums, that any number of ranks resumes";
constexpr std::string_view kKept =
    "what is kept and what is computed again is decided by the plan and changes no result";
constexpr std::string_view kOptimizerOwn = "there is one optimizer, and it runs on the CPU";
constexpr std::string_view kPython = "there is no Python in this process";
constexpr std::string_view kOtherTraining = "another way of training";
constexpr std::string_view kOtherParallel =
    "ranks work on samples side by side, and in no other way";

constexpr DsKey kTop[] = {
    {"train_batch_size", kHonour, ""},
    {"train_micro_batch_size_per_gpu", kHonour, ""},
    {"gradient_accumulation_steps", kHonour, ""},
    {"gradient_clipping", kHonour, ""},
    {"steps_per_print", kHonour, ""},
    {"bf16", kSection, ""},
    {"bfloat16", kSection, ""},
    {"fp16", kSection, ""},
    {"zero_optimization", kSection, ""},
    {"optimizer", kSection, ""},
    {"scheduler", kSection, ""},
    {"data_types", kSection, ""},
    {"communication_data_type", kHonour, ""},
    {"seq_parallel_communication_data_type", kAccept, kNothingSent},
    {"seq_parallel_comm_data_type", kAccept, kNothingSent},
    {"disable_allgather", kAccept, kNothingSent},
    {"fp32_allreduce", kAccept, kSummed},
    {"prescale_gradients", kAccept, kSummed},
    {"gradient_predivide_factor", kAccept, kSummed},
    {"gradient_allreduce_op", kHonour, ""},
    {"sparse_gradients", kAccept, kSummed},
    {"managed_gradient_accumulation", kAccept, kSummed},
    {"check_overflow", kAccept, "every step is checked; --nonfinite says what follows"},
    {"zero_allow_untested_optimizer", kAccept, kOptimizerOwn},
    {"zero_force_ds_cpu_optimizer", kAccept, kOptimizerOwn},
    {"aio", kAccept, kInMemory},
    {"activation_checkpointing", kAccept, kKept},
    {"checkpoint", kAccept, kCheckpoints},
    {"datastates", kAccept, kCheckpoints},
    {"load_universal_checkpoint", kAccept, kCheckpoints},
    {"dataloader_drop_last", kAccept, "epochs run back to back: no batch is incomplete"},
    {"vocabulary_size", kAccept, "config.json of the model has it"},
    {"wall_clock_breakdown", kAccept, kLogging},
    {"memory_breakdown", kAccept, kLogging},
    {"dump_state", kAccept, kLogging},
    {"log_level", kAccept, kLogging},
    {"timers", kAccept, kLogging},
    {"flops_profiler", kAccept, kLogging},
    {"comms_logger", kAccept, kLogging},
    {"tensorboard", kAccept, kLogging},
    {"wandb", kAccept, kLogging},
    {"csv_monitor", kAccept, kLogging},
    {"comet", kAccept, kLogging},
    {"disable_python_gc", kAccept, kPython},
    {"compile", kAccept, kPython},
    {"graph_harvesting", kAccept, kPython},
    {"nebula", kDisabled, "storage of another service"},
    {"amp", kDisabled, "mixed precision is bf16"},
    {"torch_autocast", kDisabled, "mixed precision is bf16"},
    {"autotuning", kDisabled, "nothing is tuned by trial runs"},
    {"elasticity", kDisabled, "the number of ranks is fixed for a run"},
    {"curriculum_learning", kDisabled, kOtherTraining},
    {"data_efficiency", kDisabled, kOtherTraining},
    {"progressive_layer_drop", kDisabled, kOtherTraining},
    {"eigenvalue", kDisabled, kOtherTraining},
    {"quantize_training", kDisabled, kOtherTraining},
    {"hybrid_engine", kDisabled, kOtherTraining},
    {"compression_training", kOff, kOtherTraining},
    {"weight_quantization", kOff, kOtherTraining},
    {"sparse_attention", kOff, "attention is dense"},
    {"pipeline", kOff, kOtherParallel},
    {"tensor_parallel", kOff, kOtherParallel},
    {"expert_parallel", kOff, kOtherParallel},
    {"sequence_parallel_size", kOff, kOtherParallel},
    {"use_data_before_expert_parallelism", kOff, kOtherParallel},
};

constexpr DsKey kBf16[] = {
    {"enabled", kHonour, ""},
    {"immediate_grad_update", kAccept, kSummed},
    {"check_grad_overflow", kAccept, "every step is checked; --nonfinite says what follows"},
    {"bf16_master_weights_and_grads", kOff, "master weights are fp32"},
    {"bf16_optimizer_states", kOff, "moments are fp32"},
};

constexpr DsKey kFp16[] = {
    {"enabled", kHonour, ""},
    {"auto_cast", kAccept, kFp16Off},
    {"loss_scale", kAccept, kFp16Off},
    {"initial_scale_power", kAccept, kFp16Off},
    {"loss_scale_window", kAccept, kFp16Off},
    {"hysteresis", kAccept, kFp16Off},
    {"consecutive_hysteresis", kAccept, kFp16Off},
    {"min_loss_scale", kAccept, kFp16Off},
    {"fused_mode", kAccept, kFp16Off},
    {"fp16_master_weights_and_grads", kAccept, kFp16Off},
    {"opt_level", kAccept, kFp16Off},
};

constexpr DsKey kZero[] = {
    {"stage", kHonour, ""},
    {"offload_param", kSection, ""},
    {"offload_optimizer", kSection, ""},
    {"contiguous_gradients", kAccept, kNothingSent},
    {"reduce_scatter", kAccept, kNothingSent},
    {"reduce_bucket_size", kAccept, kNothingSent},
    {"use_multi_rank_bucket_allreduce", kAccept, kNothingSent},
    {"allgather_partitions", kAccept, kNothingSent},
    {"allgather_bucket_size", kAccept, kNothingSent},
    {"overlap_comm", kAccept, kNothingSent},
    {"round_robin_gradients", kAccept, kNothingSent},
    {"sub_group_size", kAccept, kNothingSent},
    {"stage3_prefetch_bucket_size", kHonour, ""},
    {"prefetch_bucket_size", kHonour, ""},
    {"stage3_param_persistence_threshold", kAccept, kNothingSent},
    {"param_persistence_threshold", kAccept, kNothingSent},
    {"stage3_model_persistence_threshold", kAccept, kNothingSent},
    {"model_persistence_threshold", kAccept, kNothingSent},
    {"stage3_max_live_parameters", kHonour, ""},
    {"max_live_parameters", kHonour, ""},
    {"stage3_max_reuse_distance", kAccept, kNothingSent},
    {"max_reuse_distance", kAccept, kNothingSent},
    {"stage3_module_granularity_threshold", kAccept, kNothingSent},
    {"module_granularity_threshold", kAccept, kNothingSent},
    {"stage3_use_all_reduce_for_fetch_params", kAccept, kNothingSent},
    {"use_all_reduce_for_fetch_params", kAccept, kNothingSent},
    {"stage3_allgather_sequential", kAccept, kNothingSent},
    {"allgather_sequential", kAccept, kNothingSent},
    {"memory_efficient_linear", kAccept, kNothingSent},
    {"parameter_alignment", kAccept, kNothingSent},
    {"leaf_module", kAccept, kNothingSent},
    {"stage3_gather_16bit_weights_on_model_save", kAccept, "the final model is always whole"},
    {"gather_16bit_weights_on_model_save", kAccept, "the final model is always whole"},
    {"stage3_gather_fp16_weights_on_model_save", kAccept, "the final model is always whole"},
    {"load_from_fp32_weights", kAccept, kCheckpoints},
    {"elastic_checkpoint", kAccept, kCheckpoints},
    {"pipeline_loading_checkpoint", kAccept, kCheckpoints},
    {"compute_grad_norm", kAccept, "the norm of the gradient is always computed"},
    {"ignore_unused_parameters", kAccept, "every parameter is used"},
    {"legacy_stage1", kAccept, "stages 0 to 3 are the same"},
    {"override_module_apply", kAccept, kPython},
    {"log_trace_cache_warnings", kAccept, kLogging},
    {"enable_sanity_checks", kAccept, "the checks are always on"},
    {"save_muon_momentum_buffer_in_memory", kAccept, kOptimizerOwn},
    {"cpu_offload", kAccept, kInMemory},
    {"cpu_offload_param", kAccept, kInMemory},
    {"cpu_offload_params", kAccept, kInMemory},
    {"cpu_offload_use_pin_memory", kAccept, kInMemory},
    {"zero_hpz_partition_size", kOff, "weights are one copy of each node already"},
    {"zero_quantized_weights", kOff, "weights are bf16 or fp32"},
    {"zero_quantized_nontrainable_weights", kOff, "weights are bf16 or fp32"},
    {"zero_quantized_gradients", kOff, "gradients are bf16 or fp32"},
    {"zeropp_loco_param", kOff, "gradients are bf16 or fp32"},
    {"mics_shard_size", kOff, "rows are divided among all ranks"},
    {"mics_hierarchical_params_gather", kOff, "rows are divided among all ranks"},
    {"zenflow", kOff, "every update is made in its own step"},
    {"autotp_size", kOff, kOtherParallel},
};

constexpr DsKey kOffloadParam[] = {
    {"device", kHonour, ""},
    {"nvme_path", kAccept, kInMemory},
    {"buffer_count", kAccept, kInMemory},
    {"buffer_size", kAccept, kInMemory},
    {"max_in_cpu", kAccept, kInMemory},
    {"pin_memory", kAccept, kInMemory},
};

constexpr DsKey kOffloadOptimizer[] = {
    {"device", kHonour, ""},
    {"nvme_path", kAccept, kInMemory},
    {"buffer_count", kAccept, kInMemory},
    {"pin_memory", kAccept, kInMemory},
    {"pipeline", kAccept, kInMemory},
    {"pipeline_read", kAccept, kInMemory},
    {"pipeline_write", kAccept, kInMemory},
    {"fast_init", kAccept, kInMemory},
    {"ratio", kAccept, kInMemory},
    {"cpuadam_cores_perc", kAccept, "all cores of a rank work on its update"},
    {"super_offload", kOff, "every update is made in its own step"},
};

constexpr DsKey kOptimizer[] = {
    {"type", kHonour, ""},
    {"params", kSection, ""},
    {"legacy_fusion", kAccept, kOptimizerOwn},
};

constexpr DsKey kOptimizerParams[] = {
    {"lr", kHonour, ""},
    {"betas", kHonour, ""},
    {"eps", kHonour, ""},
    {"weight_decay", kHonour, ""},
    {"torch_adam", kHonour, ""},
    {"adam_w_mode", kHonour, ""},
    {"bias_correction", kHonour, ""},
    {"fp32_optimizer_states", kHonour, ""},
    {"max_grad_norm", kHonour, ""},
    {"amsgrad", kOff, "the second moment is a mean, not a maximum"},
    {"maximize", kOff, "the loss is made smaller"},
    {"fused", kAccept, kOptimizerOwn},
    {"foreach", kAccept, kOptimizerOwn},
    {"capturable", kAccept, kOptimizerOwn},
    {"differentiable", kAccept, kOptimizerOwn},
    {"set_grad_none", kAccept, kOptimizerOwn},
    {"freeze_step", kOff, "no 1-bit optimizer"},
};

constexpr DsKey kScheduler[] = {
    {"type", kHonour, ""},
    {"params", kSection, ""},
};

constexpr DsKey kSchedulerParams[] = {
    {"warmup_min_lr", kHonour, ""},    {"warmup_max_lr", kHonour, ""},
    {"warmup_num_steps", kHonour, ""}, {"warmup_type", kHonour, ""},
    {"total_num_steps", kHonour, ""},  {"warmup_min_ratio", kHonour, ""},
    {"cos_min_ratio", kHonour, ""},    {"last_batch_iteration", kHonour, ""},
};

constexpr DsKey kDataTypes[] = {
    {"grad_accum_dtype", kHonour, ""},
    {"param_dtype", kOff, "bf16.enabled says what weights are"},
    {"buffer_dtype", kOff, "bf16.enabled says what weights are"},
    {"keep_in_fp32_modules", kOff, "all weights have one type"},
};

// Insertions, deletions, replacements and swaps of neighbours that turn one into the other.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min(
          {d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::span<const DsKey> ds_keys(DsSection section) {
  switch (section) {
    case DsSection::kBf16:
      return kBf16;
    case DsSection::kFp16:
      return kFp16;
    case DsSection::kZero:
      return kZero;
    case DsSection::kOffloadParam:
      return kOffloadParam;
    case DsSection::kOffloadOptimizer:
      return kOffloadOptimizer;
    case DsSection::kOptimizer:
      return kOptimizer;
    case DsSection::kOptimizerParams:
      return kOptimizerParams;
    case DsSection::kScheduler:
      return kScheduler;
    case DsSection::kSchedulerParams:
      return kSchedulerParams;
    case DsSection::kDataTypes:
      return kDataTypes;
    default:
      return kTop;
  }
}

std::string_view nearest_ds_key(DsSection section, std::string_view name) {
  // Longer names are no misspelling of any key, and the table of distances stays small.
  if (name.size() > 64) return {};
  std::string_view nearest;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const DsKey& key : ds_keys(section)) {
    const size_t d = distance(name, key.name);
    if (d < least) {
      least = d;
      nearest = key.name;
    }
  }
  return nearest;
}

}  // namespace amxt::train
