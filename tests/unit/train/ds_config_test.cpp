#include "train/ds_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace amxt::train {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

// ZeRO-3 with everything on the CPU, every value spelled out.
constexpr const char* kExplicit = R"({
  "bf16": {"enabled": true},
  "zero_optimization": {
    "stage": 3,
    "offload_optimizer": {"device": "cpu"},
    "offload_param": {"device": "cpu"},
    "overlap_comm": true,
    "contiguous_gradients": true,
    "stage3_max_live_parameters": 1e9,
    "stage3_prefetch_bucket_size": 5e8,
    "stage3_param_persistence_threshold": 1e6
  },
  "gradient_accumulation_steps": 4,
  "gradient_clipping": 1.0,
  "steps_per_print": 1000,
  "train_micro_batch_size_per_gpu": 1,
  "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "weight_decay": 0.01}}
})";

// The file that tutorials of transformers' Trainer start from.
constexpr const char* kAuto = R"({
  "fp16": {
    "enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
    "hysteresis": 2, "min_loss_scale": 1
  },
  "bf16": {"enabled": "auto"},
  "optimizer": {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
  },
  "scheduler": {
    "type": "WarmupLR",
    "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
  },
  "zero_optimization": {
    "stage": 3,
    "offload_optimizer": {"device": "cpu", "pin_memory": true},
    "offload_param": {"device": "cpu", "pin_memory": true},
    "overlap_comm": true,
    "contiguous_gradients": true,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": true
  },
  "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto",
  "steps_per_print": 2000,
  "train_batch_size": "auto",
  "train_micro_batch_size_per_gpu": "auto",
  "wall_clock_breakdown": false
})";

DsConfig parsed(const std::string& text) {
  auto config = parse_ds_config(text, "ds.json");
  EXPECT_TRUE(config) << config.error().message();
  return config ? std::move(config).value() : DsConfig();
}

void refused(const std::string& text, Code code, const std::vector<std::string>& parts) {
  const auto config = parse_ds_config(text, "ds.json");
  ASSERT_FALSE(config) << text << ": expected an error";
  EXPECT_EQ(config.error().code(), code) << config.error().message();
  EXPECT_THAT(config.error().message(), HasSubstr("'ds.json': "));
  EXPECT_THAT(config.error().message(), Not(HasSubstr("\n")));
  for (const std::string& part : parts) EXPECT_THAT(config.error().message(), HasSubstr(part));
}

Result<EffectiveOptions> resolved(const std::string& text, const TrainOptions& given = {},
                                  int64_t world = 1, std::vector<std::string>* notes = nullptr) {
  auto config = parse_ds_config(text, "ds.json");
  if (!config) return std::move(config).error();
  return resolve(given, &*config, world, notes);
}

EffectiveOptions effective(const std::string& text, const TrainOptions& given = {},
                           int64_t world = 1) {
  auto options = resolved(text, given, world);
  EXPECT_TRUE(options) << text << ": " << options.error().message();
  return options ? std::move(options).value() : EffectiveOptions();
}

void contradicts(const std::string& text, const TrainOptions& given,
                 const std::vector<std::string>& parts, int64_t world = 1) {
  const auto options = resolved(text, given, world);
  ASSERT_FALSE(options) << text << ": expected an error";
  EXPECT_EQ(options.error().code(), Code::kInvalidArgument) << options.error().message();
  for (const std::string& part : parts) EXPECT_THAT(options.error().message(), HasSubstr(part));
}

std::vector<std::string> notes_of(const DsConfig& config, DsClass kind) {
  std::vector<std::string> texts;
  for (const DsNote& note : config.notes) {
    if (note.kind == kind) texts.push_back(note.text);
  }
  return texts;
}

// --- whole files ---

TEST(DsConfig, TakesAFileWithEveryValueSpelledOut) {
  const EffectiveOptions o = effective(kExplicit, {}, 2);
  EXPECT_EQ(o.compute_type, ComputeType::kBFloat16);
  EXPECT_EQ(o.micro_batch, 1);
  EXPECT_EQ(o.accumulate, 4);
  EXPECT_EQ(o.global_batch(), 8);
  EXPECT_EQ(o.clip, 1.0);
  EXPECT_EQ(o.log_steps, 1000);
  EXPECT_EQ(o.schedule.learning_rate, 2e-5);
  EXPECT_EQ(o.beta1, 0.9);
  EXPECT_EQ(o.beta2, 0.999);
  EXPECT_EQ(o.epsilon, 1e-8);
  EXPECT_EQ(o.weight_decay, 0.01);
  EXPECT_EQ(o.schedule.kind, ScheduleKind::kLinear);
}

TEST(DsConfig, FillsEveryAutoFromTheOptions) {
  TrainOptions given;
  given.compute_type = ComputeType::kFloat32;
  given.micro_batch = 2;
  given.accumulate = 3;
  given.clip = 0.5;
  given.learning_rate = 3e-4;
  given.beta1 = 0.8;
  given.beta2 = 0.95;
  given.epsilon = 1e-6;
  given.weight_decay = 0.1;
  given.warmup_steps = 7;
  const EffectiveOptions o = effective(kAuto, given, 4);
  EXPECT_EQ(o.compute_type, ComputeType::kFloat32);
  EXPECT_EQ(o.global_batch(), 24);
  EXPECT_EQ(o.clip, 0.5);
  EXPECT_EQ(o.schedule.learning_rate, 3e-4);
  EXPECT_EQ(o.beta1, 0.8);
  EXPECT_EQ(o.beta2, 0.95);
  EXPECT_EQ(o.epsilon, 1e-6);
  EXPECT_EQ(o.weight_decay, 0.1);
  EXPECT_EQ(o.schedule.kind, ScheduleKind::kWarmup);
  EXPECT_EQ(o.schedule.warmup_steps, 7);
}

TEST(DsConfig, FillsEveryAutoFromOurDefaults) {
  const EffectiveOptions o = effective(kAuto);
  EXPECT_EQ(o.compute_type, ComputeType::kBFloat16);
  EXPECT_EQ(o.micro_batch, 1);
  EXPECT_EQ(o.accumulate, 4);
  EXPECT_EQ(o.clip, 1.0);
  EXPECT_EQ(o.schedule.learning_rate, 2e-5);
  EXPECT_EQ(o.weight_decay, 0.01);
  EXPECT_EQ(o.schedule.warmup_steps, 0);
  EXPECT_EQ(o.schedule.warmup_min_lr, 0);
  EXPECT_TRUE(o.schedule.warmup_log);
  EXPECT_EQ(o.log_steps, 2000);
}

TEST(DsConfig, SaysOfEachKeyWhatBecomesOfIt) {
  const DsConfig config = parsed(kExplicit);
  const auto honoured = notes_of(config, DsClass::kHonoured);
  EXPECT_THAT(honoured,
              Contains(AllOf(HasSubstr("'ds.json': honoured: "), HasSubstr("bf16.enabled"),
                             HasSubstr("gradient_accumulation_steps"),
                             HasSubstr("stage3_prefetch_bucket_size"),
                             HasSubstr("optimizer.params.betas"))));
  EXPECT_THAT(honoured, Contains(AllOf(HasSubstr("zero_optimization.stage 3"),
                                       HasSubstr("stages 0 to 3 mean the same"))));
  const auto accepted = notes_of(config, DsClass::kAccepted);
  EXPECT_THAT(accepted,
              Contains(AllOf(HasSubstr("offload_param.device cpu"), HasSubstr("anyway"))));
  EXPECT_THAT(accepted,
              Contains(AllOf(HasSubstr("zero_optimization.overlap_comm"),
                             HasSubstr("contiguous_gradients"), HasSubstr("nothing is gathered"))));
}

TEST(DsConfig, ASizeBeyondAllModelsIsNoLimit) {
  for (const char* size : {"1e18", "1e15", "9223372036854775807", "1e300"}) {
    const EffectiveOptions o =
        effective(std::string(R"({"zero_optimization": {"stage": 3, "sub_group_size": 1e18,
          "reduce_bucket_size": 1e18, "stage3_max_reuse_distance": 1e18,
          "stage3_prefetch_bucket_size": )") +
                  size + R"(, "stage3_max_live_parameters": )" + size + "}}");
    EXPECT_GE(o.prefetch_parameters, 1'000'000'000'000) << size;
    EXPECT_EQ(o.live_parameters, o.prefetch_parameters) << size;
  }
  for (const char* size : {"-1e18", "1.5", "\"all\""}) {
    EXPECT_FALSE(train::parse_ds_config(std::string(R"({"zero_optimization": {"stage": 3,
          "stage3_max_live_parameters": )") +
                                            size + "}}",
                                        "ds.json")
                     .ok())
        << size;
  }
}

TEST(DsConfig, SaysWhatPassesBetweenNodes) {
  const std::string text = R"({"communication_data_type": "bf16", "zero_optimization": {
      "stage": 3, "stage3_prefetch_bucket_size": 5e6, "stage3_max_live_parameters": 2e8}})";
  const EffectiveOptions o = effective(text);
  EXPECT_EQ(o.prefetch_parameters, 5'000'000);
  EXPECT_EQ(o.live_parameters, 200'000'000);
  EXPECT_EQ(o.wire_type, GradientType::kBFloat16);
  const EffectiveOptions automatic =
      effective(R"({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto"}})");
  EXPECT_EQ(automatic.prefetch_parameters, 50'000'000);
  EXPECT_EQ(automatic.wire_type, GradientType::kAuto);
  TrainOptions given;
  given.wire_type = GradientType::kFloat32;
  given.live_parameters = 1;
  const auto file = train::parse_ds_config(text, "ds.json");
  ASSERT_TRUE(file.ok());
  const auto contradicted = train::resolve(given, &*file, 1);
  ASSERT_FALSE(contradicted.ok());
  EXPECT_THAT(contradicted.error().message(),
              AllOf(HasSubstr("communication_data_type=bfloat16 vs --wire-dtype float32"),
                    HasSubstr("stage3_max_live_parameters=200000000 vs --live-parameters 1")));
  EXPECT_FALSE(train::parse_ds_config(R"({"communication_data_type": "fp16"})", "ds.json").ok());
}

// --- precedence ---

TEST(DsConfig, TakesDeepSpeedsDefaultForAKeyLeftOut) {
  const EffectiveOptions o = effective(R"({"bf16": {"enabled": true}})");
  EXPECT_EQ(o.accumulate, 1);
  EXPECT_EQ(o.micro_batch, 1);
  EXPECT_EQ(o.clip, 1.0);
  // A whole section left out takes the options' defaults.
  EXPECT_EQ(o.schedule.learning_rate, 2e-5);
  EXPECT_EQ(o.weight_decay, 0.01);
  EXPECT_EQ(o.schedule.kind, ScheduleKind::kLinear);
  EXPECT_EQ(o.log_steps, 1);
}

TEST(DsConfig, TakesDeepSpeedsDefaultsWithinAnOptimizerSection) {
  EffectiveOptions o = effective(R"({"optimizer": {"type": "Adam"}})");
  EXPECT_EQ(o.schedule.learning_rate, 1e-3);
  EXPECT_EQ(o.weight_decay, 0);
  EXPECT_EQ(o.beta1, 0.9);
  o = effective(R"({"optimizer": {"type": "adamw", "params": {"torch_adam": true, "lr": 1e-4}}})");
  EXPECT_EQ(o.schedule.learning_rate, 1e-4);
  EXPECT_EQ(o.weight_decay, 0.01);
}

TEST(DsConfig, PutsAnOptionBeforeAKeyLeftOut) {
  TrainOptions given;
  given.accumulate = 8;
  given.clip = 0;
  given.learning_rate = 5e-5;
  given.weight_decay = 0.2;
  given.compute_type = ComputeType::kBFloat16;
  const EffectiveOptions o = effective(R"({"optimizer": {"type": "AdamW", "params": {}}})", given);
  EXPECT_EQ(o.accumulate, 8);
  EXPECT_EQ(o.clip, 0);
  EXPECT_EQ(o.schedule.learning_rate, 5e-5);
  EXPECT_EQ(o.weight_decay, 0.2);
  EXPECT_EQ(o.compute_type, ComputeType::kBFloat16);
}

TEST(DsConfig, ListsBothSidesOfEachContradiction) {
  TrainOptions given;
  given.micro_batch = 2;
  given.accumulate = 1;
  given.clip = 0.5;
  given.learning_rate = 1e-5;
  given.beta2 = 0.95;
  given.compute_type = ComputeType::kFloat32;
  given.log_steps = 1;
  given.weight_decay = 0;
  contradicts(kExplicit, given,
              {"'ds.json': ", "ds train_micro_batch_size_per_gpu=1 vs --micro-batch 2",
               "ds gradient_accumulation_steps=4 vs --accumulate 1",
               "ds gradient_clipping=1 vs --clip 0.5", "ds optimizer.params.lr=2e-05 vs --lr 1e-05",
               "ds optimizer.params.betas[1]=0.999 vs --beta2 0.95",
               "ds bf16.enabled=true vs --compute-dtype float32",
               "ds steps_per_print=1000 vs --log-steps 1",
               "ds optimizer.params.weight_decay=0.01 vs --weight-decay 0"});
}

TEST(DsConfig, TakesAnOptionThatAgreesWithTheFile) {
  TrainOptions given;
  given.micro_batch = 1;
  given.accumulate = 4;
  given.learning_rate = 2e-5;
  given.compute_type = ComputeType::kBFloat16;
  EXPECT_EQ(effective(kExplicit, given).accumulate, 4);
}

TEST(DsConfig, TakesNullForAKeyLeftOut) {
  const EffectiveOptions o = effective(
      R"({"gradient_accumulation_steps": null, "optimizer": null, "scheduler": null,
          "data_types": {"grad_accum_dtype": null}, "zero_optimization": null})");
  EXPECT_EQ(o.accumulate, 1);
  EXPECT_EQ(o.schedule.learning_rate, 2e-5);
}

// --- batch ---

TEST(DsConfig, ReckonsTheThirdSizeOfABatchFromTwo) {
  EffectiveOptions o =
      effective(R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 2})", {}, 3);
  EXPECT_EQ(o.accumulate, 4);
  o = effective(R"({"train_batch_size": 24, "gradient_accumulation_steps": 2})", {}, 3);
  EXPECT_EQ(o.micro_batch, 4);
  o = effective(R"({"train_batch_size": 24})", {}, 3);
  EXPECT_EQ(o.micro_batch, 8);
  EXPECT_EQ(o.accumulate, 1);
  TrainOptions given;
  given.micro_batch = 4;
  o = effective(R"({"train_batch_size": 24})", given, 3);
  EXPECT_EQ(o.accumulate, 2);
  o = effective(R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 2,
                    "gradient_accumulation_steps": 4})",
                {}, 3);
  EXPECT_EQ(o.global_batch(), 24);
}

TEST(DsConfig, RefusesABatchThatDoesNotMultiply) {
  contradicts(R"({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1,
                  "gradient_accumulation_steps": 4})",
              {},
              {"train_batch_size 8", "train_micro_batch_size_per_gpu 1",
               "gradient_accumulation_steps 4", "1 ranks = 4"});
  contradicts(R"({"train_batch_size": 7})", {}, {"train_batch_size 7", "2 ranks"}, 2);
  contradicts(R"({"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2})", {},
              {"train_batch_size 7", "train_micro_batch_size_per_gpu 2"});
  TrainOptions given;
  given.accumulate = 3;
  contradicts(R"({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1,
                  "gradient_accumulation_steps": "auto"})",
              given, {"train_batch_size 8", "gradient_accumulation_steps 3"});
  contradicts(R"({"train_batch_size": 4, "train_micro_batch_size_per_gpu": 1e15})", {},
              {"train_batch_size 4"}, 1000000);
}

// --- precision ---

TEST(DsConfig, ComputesInFloat32WithoutBf16AsDeepSpeedDoes) {
  EXPECT_EQ(effective(R"({"bf16": {"enabled": false}})").compute_type, ComputeType::kFloat32);
  EXPECT_EQ(effective("{}").compute_type, ComputeType::kFloat32);
  EXPECT_EQ(effective(R"({"bf16": {}})").compute_type, ComputeType::kFloat32);
  EXPECT_EQ(effective(R"({"bfloat16": {"enabled": true}})").compute_type, ComputeType::kBFloat16);
  std::vector<std::string> notes;
  ASSERT_TRUE(resolved("{}", {}, 1, &notes));
  EXPECT_THAT(notes, Contains(AllOf(HasSubstr("bf16 is left out"), HasSubstr("float32"))));
  TrainOptions given;
  given.compute_type = ComputeType::kBFloat16;
  EXPECT_EQ(effective("{}", given).compute_type, ComputeType::kBFloat16);
  contradicts(R"({"bf16": {"enabled": false}})", given,
              {"ds bf16.enabled=false vs --compute-dtype bfloat16"});
}

TEST(DsConfig, RefusesFp16ButTakesItSwitchedOff) {
  refused(R"({"fp16": {"enabled": true}})", Code::kUnsupported, {"fp16.enabled", "bf16"});
  EXPECT_TRUE(resolved(R"({"fp16": {"enabled": false, "loss_scale": 0, "auto_cast": true}})"));
  EXPECT_TRUE(resolved(R"({"fp16": {"enabled": "auto"}})"));
}

TEST(DsConfig, ReadsTheTypeOfGradients) {
  const std::string bf16 = R"("bf16": {"enabled": true}, )";
  EXPECT_EQ(effective("{" + bf16 + R"("data_types": {"grad_accum_dtype": "fp32"}})").gradient_type,
            GradientType::kFloat32);
  EXPECT_EQ(effective("{" + bf16 + R"("data_types": {"grad_accum_dtype": "bf16"}})").gradient_type,
            GradientType::kBFloat16);
  EXPECT_EQ(effective("{" + bf16 + R"("data_types": {"grad_accum_dtype": "auto"}})").gradient_type,
            GradientType::kAuto);
  refused(R"({"data_types": {"grad_accum_dtype": "fp16"}})", Code::kUnsupported, {"fp16"});
  refused(R"({"data_types": {"grad_accum_dtype": "int8"}})", Code::kFormat, {"int8"});
  contradicts(R"({"bf16": {"enabled": false}, "data_types": {"grad_accum_dtype": "bf16"}})", {},
              {"data_types.grad_accum_dtype bfloat16", "float32"});
  TrainOptions given;
  given.gradient_type = GradientType::kBFloat16;
  contradicts("{" + bf16 + R"("data_types": {"grad_accum_dtype": "fp32"}})", given,
              {"ds data_types.grad_accum_dtype=float32 vs --gradient-dtype bfloat16"});
}

// --- ZeRO ---

TEST(DsConfig, TakesEveryStageForTheSame) {
  for (const char* stage : {"0", "1", "2", "3"}) {
    const DsConfig config =
        parsed(R"({"zero_optimization": {"stage": )" + std::string(stage) + "}}");
    EXPECT_THAT(notes_of(config, DsClass::kHonoured),
                Contains(HasSubstr("zero_optimization.stage " + std::string(stage))));
  }
  refused(R"({"zero_optimization": {"stage": 4}})", Code::kFormat, {"stage", "4", "0 to 3"});
  refused(R"({"zero_optimization": {"stage": 1.5}})", Code::kFormat, {"stage", "1.5"});
  refused(R"({"zero_optimization": true})", Code::kFormat, {"zero_optimization", "object"});
}

TEST(DsConfig, RefusesNvmeByName) {
  refused(R"({"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/x"}}})",
          Code::kUnsupported, {"zero_optimization.offload_param.device", "nvme"});
  refused(R"({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}})", Code::kUnsupported,
          {"zero_optimization.offload_optimizer.device", "nvme"});
  refused(R"({"zero_optimization": {"offload_optimizer": {"device": "gpu"}}})", Code::kFormat,
          {"\"gpu\"", "none, cpu or nvme"});
  EXPECT_TRUE(resolved(R"({"zero_optimization": {"offload_param": {"device": "none"}}})"));
  EXPECT_TRUE(resolved(R"({"zero_optimization": {"offload_param": null}})"));
}

TEST(DsConfig, RefusesWhatItDoesNotDoAndTakesItSwitchedOff) {
  for (const auto& [on, off, name] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {R"("zero_optimization": {"zero_hpz_partition_size": 8})",
            R"("zero_optimization": {"zero_hpz_partition_size": 1})", "zero_hpz_partition_size"},
           {R"("zero_optimization": {"mics_shard_size": 4})",
            R"("zero_optimization": {"mics_shard_size": -1})", "mics_shard_size"},
           {R"("zero_optimization": {"zero_quantized_weights": true})",
            R"("zero_optimization": {"zero_quantized_weights": false})", "zero_quantized_weights"},
           {R"("zero_optimization": {"zenflow": {"topk_ratio": 0.1}})",
            R"("zero_optimization": {"zenflow": null})", "zenflow"},
           {R"("bf16": {"bf16_optimizer_states": true})",
            R"("bf16": {"bf16_optimizer_states": false})", "bf16_optimizer_states"},
           {R"("elasticity": {"enabled": true})", R"("elasticity": {"enabled": false})",
            "elasticity"},
           {R"("tensor_parallel": {"autotp_size": 2})", R"("tensor_parallel": {})",
            "tensor_parallel"},
           {R"("sequence_parallel_size": 2)", R"("sequence_parallel_size": 1)",
            "sequence_parallel_size"},
           {R"("compression_training": {"weight_quantization": {}})",
            R"("compression_training": {})", "compression_training"},
           {R"("curriculum_learning": {"enabled": true})",
            R"("curriculum_learning": {"enabled": false})", "curriculum_learning"},
           {R"("gradient_allreduce_op": "sum")", R"("gradient_allreduce_op": "mean")",
            "gradient_allreduce_op"}}) {
    refused("{" + on + "}", Code::kUnsupported, {name});
    EXPECT_TRUE(resolved("{" + off + "}")) << off;
  }
}

// --- optimizer ---

TEST(DsConfig, KnowsOneOptimizer) {
  for (const char* type : {"Adam", "AdamW", "adam", "ADAMW"}) {
    EXPECT_TRUE(resolved(R"({"optimizer": {"type": ")" + std::string(type) + R"("}})")) << type;
  }
  for (const char* type : {"Lamb", "OneBitAdam", "Lion", "Muon", "SGD", "Adagrad"}) {
    refused(R"({"optimizer": {"type": ")" + std::string(type) + R"("}})", Code::kUnsupported,
            {"optimizer.type", type, "AdamW"});
  }
  refused(R"({"optimizer": {"params": {"lr": 1}}})", Code::kFormat, {"optimizer.type", "missing"});
  refused(R"({"optimizer": {"type": 3}})", Code::kFormat, {"optimizer.type"});
  refused(R"({"optimizer": "AdamW"})", Code::kFormat, {"optimizer", "object"});
  refused(R"({"optimizer": {"type": "AdamW", "params": 3}})", Code::kFormat,
          {"optimizer.params", "object"});
}

TEST(DsConfig, RefusesAdamThatIsNotAdamW) {
  const auto with = [](const char* type, const std::string& params) {
    return R"({"optimizer": {"type": ")" + std::string(type) + R"(", "params": {)" + params + "}}}";
  };
  refused(with("Adam", R"("adam_w_mode": false)"), Code::kUnsupported, {"adam_w_mode"});
  EXPECT_TRUE(resolved(with("Adam", R"("adam_w_mode": true)")));
  EXPECT_TRUE(resolved(with("AdamW", R"("adam_w_mode": false)")));
  refused(with("AdamW", R"("bias_correction": false)"), Code::kUnsupported, {"bias_correction"});
  refused(with("AdamW", R"("amsgrad": true)"), Code::kUnsupported, {"amsgrad"});
  refused(with("AdamW", R"("max_grad_norm": 1.0)"), Code::kUnsupported,
          {"max_grad_norm", "gradient_clipping"});
  refused(with("AdamW", R"("fp32_optimizer_states": false)"), Code::kUnsupported,
          {"fp32_optimizer_states"});
}

TEST(DsConfig, ChecksTheRangesOfTheOptimizer) {
  const auto with = [](const std::string& params) {
    return R"({"optimizer": {"type": "AdamW", "params": {)" + params + "}}}";
  };
  refused(with(R"("betas": [0.9])"), Code::kFormat, {"betas", "two numbers"});
  refused(with(R"("betas": [0.9, "x"])"), Code::kFormat, {"betas"});
  refused(with(R"("lr": "2e-5")"), Code::kFormat, {"optimizer.params.lr", "number", "2e-5"});
  refused(with(R"("lr": -1)"), Code::kFormat, {"negative"});
  contradicts(with(R"("betas": [0.9, 1.0])"), {}, {"'ds.json': optimizer.params.betas[1] 1"});
  contradicts(with(R"("eps": 0)"), {}, {"'ds.json': optimizer.params.eps 0"});
}

// --- scheduler ---

TEST(DsConfig, ReadsEverySchedulerOfDeepSpeed) {
  EffectiveOptions o = effective(
      R"({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_min_lr": 1e-6,
          "warmup_max_lr": 3e-4, "warmup_num_steps": 10, "warmup_type": "linear",
          "total_num_steps": 200}}})");
  EXPECT_EQ(o.schedule.kind, ScheduleKind::kWarmupDecay);
  EXPECT_EQ(o.schedule.learning_rate, 3e-4);
  EXPECT_EQ(o.schedule.warmup_min_lr, 1e-6);
  EXPECT_EQ(o.schedule.warmup_steps, 10);
  EXPECT_FALSE(o.schedule.warmup_log);
  EXPECT_EQ(o.schedule.total_steps, 200);
  EXPECT_TRUE(o.horizon_given);

  o = effective(
      R"({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
          "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 50,
          "warmup_min_ratio": 0.1, "cos_min_ratio": 0.2, "warmup_num_steps": 5}}})");
  EXPECT_EQ(o.schedule.kind, ScheduleKind::kWarmupCosine);
  EXPECT_EQ(o.schedule.learning_rate, 1e-4);
  EXPECT_EQ(o.schedule.warmup_min_ratio, 0.1);
  EXPECT_EQ(o.schedule.cosine_min_ratio, 0.2);
}

TEST(DsConfig, TakesDeepSpeedsDefaultsOfTheScheduler) {
  EffectiveOptions o = effective(
      R"({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}, "scheduler": {"type": "WarmupLR"}})");
  EXPECT_EQ(o.schedule.learning_rate, 1e-4);
  EXPECT_EQ(o.schedule.warmup_steps, 1000);
  EXPECT_TRUE(o.schedule.warmup_log);
  o = effective(R"({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 9}}})");
  EXPECT_EQ(o.schedule.learning_rate, 1e-3);
  o = effective(R"({"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9}}})");
  EXPECT_EQ(o.schedule.cosine_min_ratio, 1e-4);
}

TEST(DsConfig, FillsTheHorizonFromTheRun) {
  const std::string text =
      R"({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto",
          "warmup_max_lr": "auto", "warmup_num_steps": "auto"}}})";
  TrainOptions given;
  given.steps = 300;
  given.warmup_steps = 4;
  EffectiveOptions o = effective(text, given);
  EXPECT_EQ(o.schedule.total_steps, 300);
  EXPECT_FALSE(o.horizon_given);
  EXPECT_EQ(o.schedule.warmup_steps, 4);
  EXPECT_EQ(o.schedule.learning_rate, 2e-5);
  given.total_steps = 500;
  o = effective(text, given);
  EXPECT_EQ(o.schedule.total_steps, 500);
  EXPECT_TRUE(o.horizon_given);
}

TEST(DsConfig, ListsTheContradictionsOfAScheduler) {
  const std::string text =
      R"({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 100,
          "warmup_max_lr": 1e-3, "warmup_num_steps": 5}}})";
  TrainOptions given;
  given.schedule = ScheduleKind::kCosine;
  given.learning_rate = 2e-5;
  given.warmup_steps = 6;
  given.total_steps = 101;
  contradicts(text, given,
              {"ds scheduler.type=WarmupDecayLR vs --schedule cosine",
               "ds scheduler.params.warmup_max_lr=0.001 vs --lr 2e-05",
               "ds scheduler.params.warmup_num_steps=5 vs --warmup-steps 6",
               "ds scheduler.params.total_num_steps=100 vs --steps 101"});
  TrainOptions pair;
  pair.schedule = ScheduleKind::kLinear;
  EXPECT_EQ(effective(text, pair).schedule.kind, ScheduleKind::kWarmupDecay);
}

TEST(DsConfig, SaysWhichOfTwoRatesCounts) {
  std::vector<std::string> notes;
  const auto o = resolved(
      R"({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
          "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 5e-4}}})",
      {}, 1, &notes);
  ASSERT_TRUE(o);
  EXPECT_EQ(o->schedule.learning_rate, 5e-4);
  EXPECT_THAT(notes,
              Contains(AllOf(HasSubstr("warmup_max_lr 0.0005 counts"), HasSubstr("0.0001"))));
}

TEST(DsConfig, SaysThatTheFirstStepHasNoRate) {
  const auto notes_with = [](const std::string& params) {
    std::vector<std::string> notes;
    EXPECT_TRUE(resolved(R"({"scheduler": {"type": "WarmupLR", "params": {)" + params + "}}}", {},
                         1, &notes));
    return notes;
  };
  const auto says = Contains(HasSubstr("the first step has a learning rate of 0"));
  EXPECT_THAT(notes_with(R"("warmup_num_steps": 10)"), says);
  EXPECT_THAT(notes_with(R"("warmup_min_lr": 1e-6, "warmup_num_steps": 10)"), Not(says));
}

TEST(DsConfig, NamesTheKeyOfAValueOutOfItsRange) {
  contradicts(R"({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 2]}}})", {},
              {"optimizer.params.betas[1] 2: must be 0 or more and below 1"});
  contradicts(R"({"train_micro_batch_size_per_gpu": 1e12})", {},
              {"train_micro_batch_size_per_gpu 1000000000000: must be at most"});
}

TEST(DsConfig, RefusesOtherSchedulersAndParameters) {
  const auto with = [](const char* type, const std::string& params) {
    return R"({"scheduler": {"type": ")" + std::string(type) + R"(", "params": {)" + params + "}}}";
  };
  refused(with("OneCycle", ""), Code::kUnsupported, {"OneCycle"});
  refused(with("LRRangeTest", ""), Code::kUnsupported, {"LRRangeTest"});
  refused(with("Polynomial", ""), Code::kFormat, {"'Polynomial'"});
  refused(with("WarmupDecayLR", ""), Code::kFormat, {"total_num_steps", "missing"});
  refused(with("WarmupLR", R"("total_num_steps": 5)"), Code::kFormat,
          {"total_num_steps", "WarmupLR has no such parameter"});
  refused(with("WarmupCosineLR", R"("total_num_steps": 5, "warmup_max_lr": 1)"), Code::kFormat,
          {"warmup_max_lr", "no such parameter"});
  refused(with("WarmupLR", R"("warmup_type": "cubic")"), Code::kFormat, {"cubic", "log or linear"});
  refused(with("WarmupLR", R"("warmup_num_steps": -1)"), Code::kFormat, {"warmup_num_steps", "-1"});
  refused(with("WarmupLR", R"("last_batch_iteration": 10)"), Code::kUnsupported,
          {"last_batch_iteration", "--resume"});
  refused(R"({"scheduler": {"params": {}}})", Code::kFormat, {"scheduler.type", "missing"});
}

// --- bad files ---

TEST(DsConfig, NamesAnUnknownKeyAndTheNearest) {
  refused(R"({"gradient_acumulation_steps": 4})", Code::kFormat,
          {"unknown key 'gradient_acumulation_steps'", "nearest: 'gradient_accumulation_steps'"});
  refused(R"({"zero_optimization": {"overlap_com": true}})", Code::kFormat,
          {"unknown key 'overlap_com' in zero_optimization", "'overlap_comm'"});
  refused(R"({"zero_optimization": {"offload_param": {"devcie": "cpu"}}})", Code::kFormat,
          {"'devcie' in zero_optimization.offload_param", "'device'"});
  refused(R"({"optimizer": {"type": "AdamW", "params": {"weigth_decay": 0}}})", Code::kFormat,
          {"'weigth_decay' in optimizer.params", "'weight_decay'"});
  refused(R"({"bf16": {"enable": true}})", Code::kFormat, {"'enable' in bf16", "'enabled'"});
  refused(R"({"quite_another_thing": 1})", Code::kFormat, {"'quite_another_thing'"});
}

TEST(DsConfig, ListsSeveralFaultsInOneLine) {
  refused(R"({"gradient_cliping": 1, "train_batch_size": 0, "fp16": {"enabled": true}})",
          Code::kFormat, {"gradient_cliping", "train_batch_size: 0 is below 1"});
  std::string many = "{";
  for (int i = 0; i < 100; ++i) many += "\"nonsense_" + std::to_string(i) + "\": 1,";
  many.back() = '}';
  refused(many, Code::kFormat, {"nonsense_0", "and 92 more"});
}

TEST(DsConfig, RefusesDuplicateKeys) {
  refused(R"({"gradient_clipping": 1, "gradient_clipping": 2})", Code::kFormat,
          {"duplicate", "gradient_clipping"});
  refused(R"({"bf16": {"enabled": true, "enabled": false}})", Code::kFormat, {"duplicate"});
}

TEST(DsConfig, RefusesValuesOfAnotherType) {
  refused(R"({"train_micro_batch_size_per_gpu": "two"})", Code::kFormat,
          {"train_micro_batch_size_per_gpu", "whole number", "two"});
  refused(R"({"train_micro_batch_size_per_gpu": 1.5})", Code::kFormat, {"1.5"});
  refused(R"({"train_micro_batch_size_per_gpu": true})", Code::kFormat, {"true"});
  refused(R"({"gradient_accumulation_steps": 1e300})", Code::kFormat, {"1e+300"});
  refused(R"({"gradient_clipping": [1]})", Code::kFormat, {"gradient_clipping"});
  refused(R"({"gradient_clipping": -1})", Code::kFormat, {"negative"});
  refused(R"({"bf16": {"enabled": 1}})", Code::kFormat, {"bf16.enabled", "true, false"});
  refused(R"({"bf16": true})", Code::kFormat, {"bf16", "object"});
  refused(R"({"steps_per_print": 0})", Code::kFormat, {"steps_per_print", "0"});
}

TEST(DsConfig, RefusesWhatIsNoConfiguration) {
  refused("", Code::kFormat, {});
  refused("[]", Code::kFormat, {"not a JSON object"});
  refused("{\"bf16\": }", Code::kFormat, {"JSON"});
  refused("\xFF\xFE", Code::kFormat, {"UTF-8"});
  refused(std::string(200, '['), Code::kFormat, {"deeper"});
  refused(std::string(static_cast<size_t>(kDsConfigLimit) + 1, ' '), Code::kFormat, {"bytes"});
}

TEST(DsConfig, KeepsALongOrWildKeyOutOfTheMessage) {
  const auto config = parse_ds_config("{\"" + std::string(5000, 'k') + "\": 1}", "ds.json");
  ASSERT_FALSE(config);
  EXPECT_LT(config.error().message().size(), 300u);
  refused("{\"a\\u0000\\n\": 1}", Code::kFormat, {"'a\\x00\\x0a'"});
}

}  // namespace
}  // namespace amxt::train
