// TrainerOf<E>: a trainer whose compute weights are E. Internal to train/.
#pragma once

#include <memory>
#include <string>

#include "base/file.h"
#include "checkpoint/resume.h"
#include "store/parameters.h"
#include "train/trainer_core.h"

namespace amxt::train {

template <typename E>
class TrainerOf final : public TrainerCore {
 public:
  explicit TrainerOf(TrainerParts parts) : TrainerCore(std::move(parts)) {}
  // Threads and kernels; memory of the model's size is taken by load() or resume().
  Status start();

  Status load(const std::string& directory, const CallLimits& limits) override;
  Status resume(const std::string& path, const CallLimits& limits) override;
  Result<std::string> save(const std::string& output, const CallLimits& limits) override;
  Status export_model(const std::string& directory, const CallLimits& limits) override;
  Status read_rows(const std::string& tensor, store::RowKind kind, int64_t first_row, int64_t rows,
                   std::span<float> values, const CallLimits& limits) override;
  Status write_rows(const std::string& tensor, store::RowKind kind, int64_t first_row, int64_t rows,
                    std::span<const float> values, const CallLimits& limits) override;

 protected:
  Result<std::string> save_keeping(const std::string& output, int64_t keep,
                                   const CallLimits& limits) override;
  Status export_from(const std::string& directory, const std::string& model_directory,
                     const CallLimits& limits) override;
  Result<StepResult> run_step(const Batch& batch, const StepInput& input,
                              const StepControl::Limits& limits) override;
  Result<LossSums> run_forward(const Batch& batch, float* log_probabilities,
                               const StepControl::Limits& limits,
                               const std::optional<Error>& refused) override;
  Result<std::vector<ProcessMemory>> exchange_memory(const StepControl::Limits& limits) override;

 private:
  // Rows of a tensor as the ABI counts them, found and checked.
  struct RowRequest {
    int64_t tensor = 0;
    int64_t first = 0, count = 0;  // elements
  };
  Result<RowRequest> find_rows(const std::string& tensor, int64_t first_row, int64_t rows,
                               size_t values) const;
  // Calls part(range, first_row, rows, offset) for the whole rows of this owner that meet the request; offset in elements of the request
  // may be negative where a row begins before it.
  void own_rows(
      const RowRequest& request,
      FunctionRef<void(const store::OwnedRange&, int64_t row, int64_t rows, int64_t offset)> part)
      const;
  Status read_rows_of_nodes(store::RowKind kind, const RowRequest& request, std::span<float> values,
                            const CallLimits& limits);
  Status load_directory(const std::string& directory, const CallLimits& limits);
  Status restore_from(const checkpoint::Manifest& manifest, checkpoint::Restore what,
                      const CallLimits& limits);
  Status resume_from(const std::string& path, const CallLimits& limits);
  Status become_ready(const CallLimits& limits);
  Status allocate(const CallLimits& limits);
  Status populate_state(const CallLimits& limits);
  void drop_state();

  std::unique_ptr<kernels::Gemm<E>> gemm_;
  std::unique_ptr<store::Parameters<E>> parameters_;
  std::unique_ptr<StepRunner<E>> runner_;
  bool have_gradients_ = false;
};

}  // namespace amxt::train
