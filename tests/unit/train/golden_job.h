// A step over a golden model, without trainer, files or options from outside: what the golden tests drive.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/load_model.h"
#include "io/safetensors.h"
#include "kernels/gemm.h"
#include "model/directory.h"
#include "store/parameters.h"
#include "support/thread_group.h"
#include "train/plan.h"
#include "train/step.h"

namespace amxt::test {

inline const std::vector<std::string>& golden_names() {
  static const std::vector<std::string> names = {
      "llama2", "llama3_1", "llama3_2", "llama_linear", "llama_bias", "llama_head_dim", "mistral",
      "qwen2",  "qwen3",    "smollm2",  "odd",          "even_llama", "even_qwen3"};
  return names;
}

inline std::string golden_path(const std::string& name) {
  return std::string(AMXT_TEST_GOLDEN_DIR) + "/" + name;
}

template <typename T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message();
    throw std::runtime_error(result.error().message());
  }
  return std::move(result).value();
}

inline void must(Status status) {
  if (status) return;
  ADD_FAILURE() << status.error().message();
  throw std::runtime_error(status.error().message());
}

// Tensors of golden.safetensors as float or int64.
class Golden {
 public:
  explicit Golden(const std::string& name)
      : file_(must(io::SafetensorsFile::open(golden_path(name) + "/golden.safetensors"))) {}
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  std::vector<int64_t> shape(const std::string& name) const {
    return must(file_.require(name))->shape;
  }
  std::vector<float> floats(const std::string& name) const { return read<float>(name); }
  std::vector<int64_t> integers(const std::string& name) const { return read<int64_t>(name); }
  float scalar(const std::string& name) const { return floats(name).at(0); }

 private:
  template <typename T>
  std::vector<T> read(const std::string& name) const {
    const io::TensorEntry* entry = must(file_.require(name));
    std::vector<T> values(static_cast<size_t>(entry->bytes()) / sizeof(T));
    must(file_.read(*entry, 0, std::as_writable_bytes(std::span(values))));
    return values;
  }
  io::SafetensorsFile file_;
};

// Rows [first, first + count) of golden tokens and labels (unshifted) as a batch; document starts as flat flags, or none.
inline train::Batch golden_batch(const std::vector<int64_t>& tokens,
                                 const std::vector<int64_t>& labels, int64_t T, int64_t first,
                                 int64_t count, const std::vector<int64_t>& document_starts = {}) {
  train::Batch batch;
  batch.resize(count, T);
  for (int64_t s = 0; s < count; ++s) {
    int32_t start = 0;
    for (int64_t t = 0; t < T; ++t) {
      const auto from = static_cast<size_t>((first + s) * T + t),
                 to = static_cast<size_t>(s * T + t);
      for (int64_t at : document_starts) {
        if (at == static_cast<int64_t>(from)) start = static_cast<int32_t>(t);
      }
      batch.token[to] = static_cast<int32_t>(tokens[from]);
      const bool last = t + 1 == T;
      const int64_t label = last ? -100 : labels[from + 1];
      batch.target[to] = label == -100 ? io::kNoTarget : static_cast<int32_t>(label);
      batch.weight[to] = label == -100 ? 0.0f : 1.0f;
      batch.document_start[to] = start;
      batch.position[to] = static_cast<int32_t>(t) - start;
    }
  }
  batch.tokens = count * T;
  return batch;
}

// One rank of a job over a model directory.
template <typename E>
class Job {
 public:
  Job(const std::string& directory, comm::Group& group, train::EffectiveOptions options,
      int threads = 1, std::optional<store::Layout::Order> order = std::nullopt,
      Isa isa = must(cpu_isa())->chosen)
      : directory_(must(model::ModelDirectory::open(directory))),
        options_(std::move(options)),
        layout_(directory_.config(), group.size(),
                order.value_or(store::Layout::order_for(directory_.config(), sizeof(E) == 2))) {
    options_.compute_type =
        sizeof(E) == 4 ? train::ComputeType::kFloat32 : train::ComputeType::kBFloat16;
    options_.world_size = group.size();
    ThreadPool::Options pool;
    pool.threads = threads;
    pool.spin_us = 0;
    pool_ = must(ThreadPool::create(pool));
    gemm_ = must(kernels::Gemm<E>::create(pool_.get(), isa, layout_.order()));
    plan_ = must(train::make_plan(directory_.config(), options_, group.nodes(), threads));
    typename store::Parameters<E>::Options store;
    store.gradient_dtype = plan_.gradient_dtype;
    store.window_slots = std::max(1, plan_.window_slots);
    parameters_ = must(store::Parameters<E>::create(&layout_, &group, store, Deadline::never()));
    must(checkpoint::load_model(directory_, *parameters_, group, {}, Deadline::never(), nullptr));
    typename train::StepRunner<E>::Parts parts{
        &directory_.config(), &options_, &plan_,     &layout_, parameters_.get(), &group,
        pool_.get(),          isa,       gemm_.get()};
    runner_ = must(train::StepRunner<E>::create(parts, Deadline::never()));
  }

  train::StepResult step(const train::Batch& batch, int64_t number, double rate,
                         bool commit = true) {
    train::StepInput input;
    input.step = input.update = number;
    input.learning_rate = rate;
    input.commit = commit;
    return must(runner_->step(batch, input, {}));
  }
  // All of a tensor's gradient, from the ranges that this rank owns (all of them when it is alone).
  std::vector<float> gradient(int64_t tensor) const {
    std::vector<float> values(
        static_cast<size_t>(layout_.specs()[static_cast<size_t>(tensor)].elements()));
    const int64_t columns = layout_.specs()[static_cast<size_t>(tensor)].columns;
    for (const store::OwnedRange& range : layout_.ranges(parameters_->owner(), -1)) {
      if (range.tensor != tensor) continue;
      parameters_->read_rows(store::RowKind::kGradient, range, range.row_begin, range.rows(),
                             values.data() + range.row_begin * columns);
    }
    return values;
  }
  const store::Layout& layout() const { return layout_; }
  train::StepRunner<E>& runner() { return *runner_; }
  store::Parameters<E>& parameters() { return *parameters_; }
  const train::MemoryPlan& plan() const { return plan_; }
  const kernels::Gemm<E>& gemm() const { return *gemm_; }

 private:
  model::ModelDirectory directory_;
  train::EffectiveOptions options_;
  store::Layout layout_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<kernels::Gemm<E>> gemm_;
  train::MemoryPlan plan_;
  std::unique_ptr<store::Parameters<E>> parameters_;
  std::unique_ptr<train::StepRunner<E>> runner_;
};

inline train::EffectiveOptions golden_options(int64_t T, int64_t micro_batch, int64_t accumulate) {
  train::EffectiveOptions options;
  options.sequence_length = T;
  options.micro_batch = micro_batch;
  options.accumulate = accumulate;
  return options;
}

}  // namespace amxt::test
