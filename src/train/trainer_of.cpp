#include "train/trainer_of.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/export_model.h"
#include "checkpoint/load_model.h"
#include "checkpoint/resume.h"
#include "checkpoint/save.h"

namespace amxt::train {
namespace {

// Tells two model directories apart without reading them: sizes of the shards, and a checksum of pieces spread over each.
Result<std::string> identity_of(const model::ModelDirectory& model) {
  constexpr int64_t kPieces = 8, kPieceBytes = 1024;
  std::string identity;
  for (const io::SafetensorsFile& file : model.files()) {
    std::vector<std::byte> pieces;
    for (int64_t i = 0; i < kPieces; ++i) {
      const int64_t at = file.file_bytes() / kPieces * i;
      std::vector<std::byte> piece(
          static_cast<size_t>(std::min(kPieceBytes, file.file_bytes() - at)));
      AMXT_TRY(file.file().read_at(at, piece));
      pieces.insert(pieces.end(), piece.begin(), piece.end());
    }
    identity += fmt::format("{} {} {:016x}; ", base_name(file.path()), file.file_bytes(),
                            XXH3_64bits(pieces.data(), pieces.size()));
  }
  return fmt::format("{} files, {:016x}", model.files().size(),
                     XXH3_64bits(identity.data(), identity.size()));
}

}  // namespace

template <typename E>
Status TrainerOf<E>::start() {
  ThreadPool::Options options;
  options.threads = parts_.threads;
  options.cpus = parts_.cpus;
  if (group().oversubscribed() || parts_.cpus.empty()) options.spin_us = 0;
  AMXT_ASSIGN(pool_, ThreadPool::create(options));
  AMXT_ASSIGN(gemm_, kernels::Gemm<E>::create(pool_.get(), parts_.isa->chosen, layout_.order()));
  std::string row_major;
  if (store::Layout::order_for(config(), sizeof(E) == 2, &row_major) ==
      store::Layout::Order::kRowMajor)
    log().debug(fmt::format("weights are row-major: {}", row_major));
  log().info(fmt::format("matrix products: {}", gemm_->name()));
  for (const kernels::GemmCandidate& candidate : gemm_->candidates()) {
    if (!candidate.skipped_because.empty()) {
      log().debug(fmt::format("matrix products: {} skipped: {}", candidate.name,
                              candidate.skipped_because));
    }
  }
  return {};
}

// Memory of the model's size, on all ranks or on none.
template <typename E>
Status TrainerOf<E>::allocate(const CallLimits& limits) {
  if (parameters_) return {};
  typename store::Parameters<E>::Options options;
  options.optimizer = !parts_.options.forward_only;
  options.gradient_dtype = parts_.plan.gradient_dtype;
  options.window_slots = std::max(1, parts_.plan.window_slots);
  const auto make = [&]() -> Status {
    AMXT_ASSIGN(parameters_,
                store::Parameters<E>::create(&layout_, &group(), options, limits.deadline));
    typename StepRunner<E>::Parts step;
    step.config = &config();
    step.options = &parts_.options;
    step.plan = &parts_.plan;
    step.layout = &layout_;
    step.parameters = parameters_.get();
    step.group = &group();
    step.pool = pool_.get();
    step.isa = parts_.isa->chosen;
    step.gemm = gemm_.get();
    AMXT_ASSIGN(runner_, StepRunner<E>::create(step, limits.deadline));
    return {};
  };
  Status made = checkpoint::agree(group(), make(), limits.deadline);
  if (!made) drop_state();
  return made;
}

template <typename E>
void TrainerOf<E>::drop_state() {
  runner_.reset();
  parameters_.reset();
  have_gradients_ = false;
}

// Takes the pages of the optimizer's state now, so that a lack of memory shows before the first step; records the stages.
template <typename E>
Status TrainerOf<E>::populate_state(const CallLimits& limits) {
  AMXT_TRY(record_memory("after load", limits));
  if (parts_.options.forward_only) return {};
  parameters_->populate_low_bits(*pool_);
  AMXT_TRY(record_memory("master weights", limits));
  parameters_->populate_moments(*pool_);
  return record_memory("moments", limits);
}

template <typename E>
Status TrainerOf<E>::load(const std::string& directory, const CallLimits& limits) {
  if (state().step > 0)
    return Error(Code::kInvalidState, "steps have been taken: load into a new trainer");
  pool_->pin_caller();
  const bool is_checkpoint = path_exists(join_path(directory, checkpoint::kManifestName)) ||
                             path_exists(join_path(directory, checkpoint::kLatestName));
  const auto load_weights = [&]() -> Status {
    AMXT_ASSIGN(const checkpoint::Manifest manifest,
                checkpoint::open_checkpoint(directory, group(), limits.deadline));
    return restore_from(manifest, checkpoint::Restore::kWeights, limits);
  };
  Status loaded = is_checkpoint ? load_weights() : load_directory(directory, limits);
  if (!loaded) {
    drop_state();
    return loaded;
  }
  return become_ready(limits);
}

template <typename E>
Status TrainerOf<E>::load_directory(const std::string& directory, const CallLimits& limits) {
  const auto open = [&]() -> Result<model::ModelDirectory> {
    AMXT_ASSIGN(model::ModelDirectory model, model::ModelDirectory::open(directory));
    AMXT_TRY(check_same_model(model.config(), directory));
    return model;
  };
  Result<model::ModelDirectory> model = open();
  const auto identity = [&]() -> Result<std::string> {
    if (!model) return Error(model.error());
    return identity_of(*model);
  };
  AMXT_ASSIGN(const std::vector<std::string> seen,
              checkpoint::agree(group(), identity(), limits.deadline));
  for (size_t rank = 1; rank < seen.size(); ++rank) {
    if (seen[rank] == seen[0]) continue;
    return Error(Code::kMismatch, fmt::format("{}: ranks 0 and {} see different weights there",
                                              quote(directory), rank))
        .with_rank(static_cast<int32_t>(rank));
  }
  AMXT_TRY(allocate(limits));
  return checkpoint::load_model(*model, *parameters_, group(), parts_.setup.progress,
                                limits.deadline, limits.cancel);
}

template <typename E>
Status TrainerOf<E>::restore_from(const checkpoint::Manifest& manifest, checkpoint::Restore what,
                                  const CallLimits& limits) {
  AMXT_TRY(checkpoint::check_same_model(manifest, config()));
  if (what == checkpoint::Restore::kState) {
    if (parts_.options.forward_only)
      return Error(Code::kInvalidState,
                   "a trainer for forward only takes weights (load), not the state of training");
    AMXT_TRY(check_training_state(manifest.training));
  }
  AMXT_TRY(allocate(limits));
  AMXT_TRY(checkpoint::restore(manifest, what, config(), *parameters_, group(),
                               parts_.setup.progress, limits.deadline, limits.cancel));
  if (what == checkpoint::Restore::kState) take_training_state(manifest.training);
  return {};
}

// Of a directory of checkpoints, the newest whose checksums are right: what was whole when it was written and is broken now must not hold
// up the job, which has an older one.
template <typename E>
Status TrainerOf<E>::resume_from(const std::string& path, const CallLimits& limits) {
  const bool has_others = !checkpoint::is_one_checkpoint(path);
  std::optional<Error> newest_broken;
  for (int64_t before = INT64_MAX;;) {
    const Result<checkpoint::Manifest> manifest =
        checkpoint::open_checkpoint(path, group(), limits.deadline, before);
    if (!manifest) return newest_broken ? *std::move(newest_broken) : manifest.error();
    Status restored = restore_from(*manifest, checkpoint::Restore::kState, limits);
    if (restored && newest_broken && leads())
      log().warning(fmt::format("resumed from {} instead", quote(manifest->path)));
    if (restored || !has_others || restored.error().code() != Code::kCorrupt) return restored;
    if (leads()) {
      log().warning(
          fmt::format("{} is passed over: {}", quote(manifest->path), restored.error().message()));
    }
    if (!newest_broken) newest_broken = restored.error();
    before = manifest->training.step;
  }
}

template <typename E>
Status TrainerOf<E>::become_ready(const CallLimits& limits) {
  AMXT_TRY(populate_state(limits));
  std::lock_guard lock(mutex_);
  state_.status = TrainerStatus::kReady;
  return {};
}

template <typename E>
Status TrainerOf<E>::resume(const std::string& path, const CallLimits& limits) {
  if (state().status == TrainerStatus::kReady)
    return Error(Code::kInvalidState, "the trainer has its weights: resume into a new one");
  pool_->pin_caller();
  // A trainer that failed after a commit starts over with new memory.
  drop_state();
  Status resumed = resume_from(path, limits);
  if (!resumed) {
    drop_state();
    return resumed;
  }
  return become_ready(limits);
}

template <typename E>
Result<std::string> TrainerOf<E>::save_keeping(const std::string& output, int64_t keep,
                                               const CallLimits& limits) {
  AMXT_TRY(require_ready());
  if (parts_.options.forward_only)
    return Error(Code::kInvalidState,
                 "a trainer for forward only has no state of training to save");
  checkpoint::SaveOptions options;
  options.keep = keep;
  AMXT_ASSIGN(checkpoint::Saved saved,
              checkpoint::save(output, training_state(), config(), *parameters_, options, group(),
                               parts_.setup.progress, limits.deadline, limits.cancel));
  for (const std::string& warning : saved.warnings) log().warning(warning);
  return std::move(saved.path);
}

template <typename E>
Result<std::string> TrainerOf<E>::save(const std::string& output, const CallLimits& limits) {
  return save_keeping(output, 0, limits);
}

template <typename E>
Status TrainerOf<E>::export_model(const std::string& directory, const CallLimits& limits) {
  return export_from(directory, "", limits);
}

template <typename E>
Status TrainerOf<E>::export_from(const std::string& directory, const std::string& model_directory,
                                 const CallLimits& limits) {
  AMXT_TRY(require_ready());
  return checkpoint::export_model(
      directory, model_directory.empty() ? parts_.setup.model->path() : model_directory, config(),
      *parameters_, group(), parts_.setup.progress, limits.deadline, limits.cancel);
}

template <typename E>
Result<StepResult> TrainerOf<E>::run_step(const Batch& batch, const StepInput& input,
                                          const StepControl::Limits& limits) {
  pool_->pin_caller();
  have_gradients_ = false;
  Result<StepResult> result = runner_->step(batch, input, limits);
  if (runner_->committed_but_failed()) {
    std::lock_guard lock(mutex_);
    state_.status = TrainerStatus::kFailed;
  }
  have_gradients_ = result.ok() && !input.commit;
  return result;
}

template <typename E>
auto TrainerOf<E>::run_forward(const Batch& batch, float* log_probabilities,
                               const StepControl::Limits& limits,
                               const std::optional<Error>& refused) -> Result<LossSums> {
  pool_->pin_caller();
  AMXT_ASSIGN(const auto sums, runner_->evaluate(batch, log_probabilities, limits, refused));
  return LossSums{sums.loss_sum, sums.weight_sum, sums.tokens};
}

template <typename E>
auto TrainerOf<E>::exchange_memory(const StepControl::Limits& limits)
    -> Result<std::vector<ProcessMemory>> {
  return runner_->exchange_memory(limits);
}

template <typename E>
auto TrainerOf<E>::find_rows(const std::string& tensor, int64_t first_row, int64_t rows,
                             size_t values) const -> Result<RowRequest> {
  const auto& specs = layout_.specs();
  const auto at = std::find_if(specs.begin(), specs.end(),
                               [&](const model::TensorSpec& spec) { return spec.name == tensor; });
  if (at == specs.end())
    return Error(Code::kNotFound, fmt::format("the model has no tensor {}", quote(tensor)));
  // A vector is one row to the layout, and rows of one element to the caller.
  const int64_t have = at->vector ? at->columns : at->rows, width = at->vector ? 1 : at->columns;
  if (first_row < 0 || rows < 1 || first_row > have - rows) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{} rows from row {} of tensor {} were asked for; it has {}", rows,
                             first_row, quote(tensor), have));
  }
  if (values != 0 && values != static_cast<size_t>(rows * width)) {
    return Error(Code::kInvalidArgument, fmt::format("{} rows of tensor {} are {} values, not {}",
                                                     rows, quote(tensor), rows * width, values));
  }
  return RowRequest{at - specs.begin(), first_row * width, rows * width};
}

template <typename E>
void TrainerOf<E>::own_rows(
    const RowRequest& request,
    FunctionRef<void(const store::OwnedRange&, int64_t, int64_t, int64_t)> part) const {
  const int64_t columns = layout_.specs()[static_cast<size_t>(request.tensor)].columns;
  const int64_t first = request.first / columns,
                end = (request.first + request.count + columns - 1) / columns;
  for (const store::OwnedRange& range : layout_.ranges(group().rank(), -1)) {
    if (range.tensor != request.tensor) continue;
    const int64_t begin = std::max(first, range.row_begin), stop = std::min(end, range.row_end);
    if (begin < stop) part(range, begin, stop - begin, begin * columns - request.first);
  }
}

template <typename E>
Status TrainerOf<E>::read_rows(const std::string& tensor, store::RowKind kind, int64_t first_row,
                               int64_t rows, std::span<float> values, const CallLimits& limits) {
  AMXT_TRY(require_ready());
  if (kind == store::RowKind::kGradient && !have_gradients_) {
    return Error(Code::kInvalidState,
                 "there are no gradients: they are readable after amxt_preview_trainer_gradients() "
                 "until the next step");
  }
  if (parts_.options.forward_only && kind != store::RowKind::kMaster &&
      kind != store::RowKind::kCompute) {
    return Error(Code::kInvalidState, "a trainer for forward only has no gradients or moments");
  }
  const Result<RowRequest> found = find_rows(tensor, first_row, rows, values.size());
  const auto asks = [&]() -> Result<std::string> {
    if (!found) return Error(found.error());
    return fmt::format("{} {} {} {}", tensor, static_cast<int>(kind), first_row, rows);
  };
  AMXT_ASSIGN(const std::vector<std::string> asked,
              checkpoint::agree(group(), asks(), limits.deadline));
  const RowRequest& request = *found;
  for (size_t rank = 1; rank < asked.size(); ++rank) {
    if (asked[rank] != asked[0]) {
      return Error(Code::kMismatch, fmt::format("rank 0 asks for {}, rank {} for {}",
                                                quote(asked[0]), rank, quote(asked[rank])))
          .with_rank(static_cast<int32_t>(rank));
    }
  }
  if (group().node_count() > 1) return read_rows_of_nodes(kind, request, values, limits);
  AMXT_ASSIGN(const comm::SharedMemory shared,
              group().share("rows that are read", request.count * 4, limits.deadline));
  auto* all = reinterpret_cast<float*>(shared.data());
  const int64_t columns = layout_.specs()[static_cast<size_t>(request.tensor)].columns;
  own_rows(request,
           [&](const store::OwnedRange& range, int64_t row, int64_t count, int64_t offset) {
             std::vector<float> block(static_cast<size_t>(count * columns));
             parameters_->read_rows(kind, range, row, count, block.data());
             const int64_t skip = std::max<int64_t>(0, -offset), to = std::max<int64_t>(0, offset);
             const int64_t n = std::min(count * columns - skip, request.count - to);
             std::memcpy(all + to, block.data() + skip, static_cast<size_t>(n) * sizeof(float));
           });
  AMXT_TRY(group().barrier({limits.deadline, limits.cancel}));
  std::copy_n(all, values.size(), values.begin());
  return {};
}

// In blocks that fit an exchange: each rank gives what it owns of a block, as the place of each piece, its length and its values.
template <typename E>
Status TrainerOf<E>::read_rows_of_nodes(store::RowKind kind, const RowRequest& request,
                                        std::span<float> values, const CallLimits& limits) {
  constexpr int64_t kBlock = 8192;  // elements
  const int64_t columns = layout_.specs()[static_cast<size_t>(request.tensor)].columns;
  for (int64_t first = 0; first < request.count; first += kBlock) {
    const int64_t end = std::min(request.count, first + kBlock);
    const RowRequest block{request.tensor, request.first + first, end - first};
    std::string mine;
    own_rows(block,
             [&](const store::OwnedRange& range, int64_t row, int64_t count, int64_t offset) {
               std::vector<float> rows(static_cast<size_t>(count * columns));
               parameters_->read_rows(kind, range, row, count, rows.data());
               const int64_t skip = std::max<int64_t>(0, -offset);
               const int64_t piece[2] = {
                   std::max<int64_t>(0, offset),
                   std::min(count * columns - skip, block.count - std::max<int64_t>(0, offset))};
               mine.append(reinterpret_cast<const char*>(piece), sizeof piece);
               mine.append(reinterpret_cast<const char*>(rows.data() + skip),
                           static_cast<size_t>(piece[1]) * sizeof(float));
             });
    if (limits.cancel != nullptr && limits.cancel->load())
      return Error(Code::kCancelled, "reading rows: cancelled");
    AMXT_ASSIGN(const std::vector<std::string> all, group().exchange(mine, limits.deadline));
    for (std::string_view text : all) {
      int64_t piece[2] = {0, 0};
      while (text.size() >= sizeof piece) {
        std::memcpy(piece, text.data(), sizeof piece);
        text.remove_prefix(sizeof piece);
        const auto bytes = static_cast<size_t>(piece[1]) * sizeof(float);
        if (!values.empty()) std::memcpy(values.data() + first + piece[0], text.data(), bytes);
        text.remove_prefix(bytes);
      }
    }
  }
  return {};
}

template <typename E>
Status TrainerOf<E>::write_rows(const std::string& tensor, store::RowKind kind, int64_t first_row,
                                int64_t rows, std::span<const float> values,
                                const CallLimits& limits) {
  AMXT_TRY(require_ready());
  if (kind == store::RowKind::kGradient || kind == store::RowKind::kCompute) {
    return Error(Code::kInvalidArgument, "gradients and compute weights are read only");
  }
  if (parts_.options.forward_only && kind != store::RowKind::kMaster)
    return Error(Code::kInvalidState, "a trainer for forward only has no moments");
  if (values.empty()) return Error(Code::kInvalidArgument, "no values are given");
  const Result<RowRequest> found = find_rows(tensor, first_row, rows, values.size());
  AMXT_TRY(
      checkpoint::agree(group(), found ? Status() : Status(Error(found.error())), limits.deadline));
  const RowRequest& request = *found;
  const int64_t columns = layout_.specs()[static_cast<size_t>(request.tensor)].columns;
  AMXT_TRY(
      group().barrier({limits.deadline, limits.cancel}));  // nobody reads the old ones any more
  own_rows(
      request, [&](const store::OwnedRange& range, int64_t row, int64_t count, int64_t offset) {
        std::vector<float> block(static_cast<size_t>(count * columns));
        parameters_->read_rows(kind, range, row, count, block.data());
        const int64_t skip = std::max<int64_t>(0, -offset), from = std::max<int64_t>(0, offset);
        const int64_t n = std::min(count * columns - skip, request.count - from);
        std::copy_n(values.begin() + from, n, block.begin() + skip);
        parameters_->write_rows(kind, range, row, count, block.data());
      });
  return group().barrier({limits.deadline, limits.cancel});
}

template class TrainerOf<float>;
template class TrainerOf<bf16>;

namespace {

template <typename E>
Result<std::unique_ptr<Trainer>> make(TrainerParts parts) {
  auto trainer = std::make_unique<TrainerOf<E>>(std::move(parts));
  AMXT_TRY(trainer->start());
  return std::unique_ptr<Trainer>(std::move(trainer));
}

}  // namespace

Result<std::unique_ptr<Trainer>> make_bfloat16_trainer(TrainerParts parts, const CallLimits&) {
  return make<bf16>(std::move(parts));
}
Result<std::unique_ptr<Trainer>> make_float32_trainer(TrainerParts parts, const CallLimits&) {
  return make<float>(std::move(parts));
}

}  // namespace amxt::train
