// Step: one training step over all ranks of a job, from tokens to updated weights, as a transaction.
//
//   phase 1   per wave: embedding, layers (all micro-batches of the wave through one layer before the next), head and loss by blocks of the
//             vocabulary; back through the layers: each rank computes dX of its micro-batches and leaves the pairs (X, dY) in the shared
//             arena; barrier; each rank computes dW of the rows that it OWNS, over all micro-batches of the node in global order
//   commit    global norm and finite check from sums that all ranks read in one order; one atomic decision
//   phase 2   clip, AdamW on each rank's own rows, published by the barrier that ends the step
//
// Several nodes: weights of other nodes' rows come through the window of store::Parameters, ahead of use; a rank computes its node's part
// of dW also for owners elsewhere, and the parts are added by the owner in the order of nodes (store::GradientExchange). Of the embedding
// only the rows of a wave's tokens pass the wire, either way: every node knows all tokens. What ranks tell each other (losses, counts,
// norms) lies in each node's arena for all ranks of the job. A step that ends before its commit leaves the wire in disorder: the next call
// connects the nodes anew.
//
// Order of sums: micro-batch k = accumulation x world + rank; dW, loss and norm are added in order of k, in blocks that never cross a
// micro-batch. So world size, waves, threads, and what is kept do not change a bit where the products keep one order
// (kernels::Gemm::one_order) and gradients are fp32.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "comm/group.h"
#include "kernels/gemm.h"
#include "model/decoder.h"
#include "model/head.h"
#include "store/gradient_exchange.h"
#include "store/parameters.h"
#include "train/batch.h"
#include "train/options.h"
#include "train/plan.h"
#include "train/process_memory.h"
#include "train/step_control.h"

namespace amxt::train {

// What one step does to the state; everything that changes from step to step.
struct StepInput {
  int64_t step = 1;    // number of this step, from 1, for messages
  int64_t update = 1;  // of the optimizer, from 1, for bias correction: skipped steps do not count
  double learning_rate = 0;
  bool commit = true;            // false: gradients only, nothing changes
  std::optional<Error> refused;  // why this rank can't take it: then no rank does
};

struct StepResult {
  double loss = 0;
  double grad_norm = 0;        // before clipping
  bool skipped = false;        // not finite, and the policy is to skip
  int64_t tokens = 0;          // positions that are not padding, all ranks
  int64_t counted = 0;         // targets that counted, all ranks
  int64_t peak_rss_bytes = 0;  // largest rank
  int64_t pss_bytes = 0;       // sum over ranks, now
  int64_t private_bytes = 0;   // sum over ranks, now
  double seconds = 0;
  const char* transport = "";    // between nodes
  store::Traffic::Uses wire{};   // over it: bytes of all ranks, waits of the largest
  double wire_wait_seconds = 0;  // that computing waited for the wire in all, largest rank
};

template <typename E>
class StepRunner {
 public:
  struct Parts {
    const model::ModelConfig* config;
    const EffectiveOptions* options;
    const MemoryPlan* plan;
    const store::Layout* layout;
    store::Parameters<E>* parameters;
    comm::Group* group;
    ThreadPool* pool;
    Isa isa;
    kernels::Gemm<E>* gemm;

    // An operation of the step, for the pool's trace.
    Span span(const char* name, double flop = 0, double bytes = 0) const {
      return Span(pool->trace(), name, flop, bytes);
    }
  };
  // Collective: the arena is made here, and the nodes are connected. All buffers are allocated here, none in a step.
  static Result<std::unique_ptr<StepRunner>> create(const Parts& parts, Deadline deadline);

  // Collective. An error before the commit leaves the state untouched; one after it is told by committed_but_failed().
  Result<StepResult> step(const Batch& batch, const StepInput& input,
                          const StepControl::Limits& limits);
  bool committed_but_failed() const { return failed_after_commit_; }

  // Collective. Mean-loss parts of one batch of any number of samples (at most a step's) without gradients: sum of weighted losses and of
  // weights over all ranks, in order of k. log_probabilities: [samples, sequence] of the targets (0 where there is none), or null.
  // `refused`: as of StepInput.
  struct Evaluation {
    double loss_sum = 0;
    double weight_sum = 0;
    int64_t tokens = 0;
  };
  Result<Evaluation> evaluate(const Batch& batch, float* log_probabilities,
                              const StepControl::Limits& limits,
                              const std::optional<Error>& refused = std::nullopt);

  StepControl& control() { return *control_; }
  // Collective. By rank.
  Result<std::vector<ProcessMemory>> exchange_memory(const StepControl::Limits& limits);

  // Of a node with `ranks` of the `world` ranks.
  static int64_t arena_bytes(const model::ModelConfig& config, const EffectiveOptions& options,
                             int ranks, int world, int64_t wave, const store::Layout& layout);
  static int64_t record_bytes(const EffectiveOptions& options);
  static int64_t kept_bytes(const model::ModelConfig& config, const EffectiveOptions& options,
                            int64_t wave, model::Keep keep);
  static int64_t scratch_bytes(const model::ModelConfig& config, const EffectiveOptions& options,
                               store::Layout::Order order, int64_t slots, int threads);

 private:
  // What a rank tells the others, in the shared arena.
  struct Mailbox {
    int64_t tokens;
    int64_t counted;
    int64_t
        bad_micro_batch;  // first micro-batch (accumulation index) whose loss is not finite, or -1
    int64_t bad_layer;    // first layer whose output is not finite there, or -1
    int64_t bad_tensor;   // first owned tensor with a gradient that is not finite, or -1
    ProcessMemory memory;
    int64_t micro_rows;  // rows of a micro-batch of this rank in this step
    int64_t micro_batches;
    store::Traffic::Uses wire;
    double learning_rate;
    double seconds;
  };
  // Rows of the embedding that the tokens of a node need in a wave.
  struct Needed {
    std::vector<int32_t> rows;   // by owner, ascending
    std::vector<int64_t> begin;  // of each owner's; [world + 1]
    std::span<const int32_t> of(int owner) const {
      const auto at = static_cast<size_t>(owner);
      return std::span(rows).subspan(static_cast<size_t>(begin[at]),
                                     static_cast<size_t>(begin[at + 1] - begin[at]));
    }
  };
  // Where rows of a gradient go: fp32 or bf16, written or added to.
  struct GradientRows {
    float* as_float = nullptr;
    bf16* as_bf16 = nullptr;
    bool add = false;
  };

  explicit StepRunner(const Parts& parts) : p_(parts) {}
  Status carve();
  Status phase_one(const Batch& batch, const StepInput& input);
  Status agree(const StepInput& input, StepResult* result);
  Status check_batch(const Batch& batch, bool whole) const;
  Status forward_layers(const Batch& batch, int64_t first, int64_t count, bool keep);
  Status head_forward(const Batch& batch, int64_t first, int64_t count);
  Status head_backward(const Batch& batch, int64_t first, int64_t count, bool first_wave);
  Status layers_backward(const Batch& batch, int64_t first, int64_t count, bool first_wave);
  // `gradient`: [count, rows, D] of the embedding's output.
  Status embedding_backward(const Batch& batch, int64_t first, int64_t count, bool first_wave,
                            const E* gradient);
  // Gradients of a tied embedding come after all of the head's, so that waves do not change the order of sums.
  bool defers_embedding() const { return p_.layout->tied() && p_.plan->waves > 1; }
  void publish_counts(const Batch& batch);
  void set_scales(const Batch& batch);
  // Where a rank's micro-batch of the wave keeps something.
  using Locator = FunctionRef<const E*(int rank, int64_t index)>;
  // dW rows of `range` (+)= over the node's micro-batches of the wave, in order, dY[:, first_column + row]^T X.
  // Ranks of a locator are local.
  Status matrix_gradient(const store::OwnedRange& range, const GradientRows& to, int64_t count,
                         Locator x, Locator dy, int64_t lddy, int64_t first_column);
  Status rounded_gradient(const store::OwnedRange& range, E* to, int64_t count, Locator x,
                          Locator dy, int64_t lddy, int64_t first_column);
  // A vector's gradient (+)= what `add` adds for each micro-batch, in order.
  void vector_gradient(const store::OwnedRange& range, const GradientRows& to, int64_t count,
                       FunctionRef<void(int, int64_t, float*)> add);
  Status layer_part(const store::OwnedRange& range, const GradientRows& to, int64_t count);
  Status norm_part(const store::OwnedRange& range, const GradientRows& to, int64_t count);
  // Calls `compute` for each range of a deal whose gradient this rank makes, and brings the parts to their owners.
  using Compute = FunctionRef<Status(const store::OwnedRange& range, const GradientRows& to)>;
  Status deal_gradient(int64_t deal, bool first_wave, Compute compute);
  // Of the embedding: sets its gradient to zero; finds the node's tokens of the wave that have these rows, into embedding_rows_.
  void clear_gradient(const store::OwnedRange& range);
  void find_embedding_rows(int64_t count, int64_t row_begin, int64_t row_end);
  const E* source_of(uint64_t place, int64_t count) const;
  void embed(const Batch& batch, int64_t first, int64_t count);
  Status gather_tokens(const Batch& batch, int64_t first, int64_t count);
  bool has_nodes() const { return p_.parameters->traffic() != nullptr; }
  // For waits that nothing but a rank that is alive can end.
  Status barrier();
  Result<const E*> acquire(int64_t deal);
  Status poll() {
    if (has_nodes()) AMXT_TRY(p_.group->check());
    return control_->poll();
  }
  static bool is_fatal(const Error& error) { return static_cast<int>(error.code()) >= 100; }
  Error leave(Error error);
  Status why_lost(const Error& error);

  // With several nodes.
  Status join_nodes(Deadline deadline);
  // Every call begins an attempt and ends it by one word for all ranks: so all know alike whether the wire is in order.
  Status begin_call(const StepControl::Limits& limits);
  Status end_call();
  void give_up_wire();
  store::Traffic::Uses wire_uses() const;
  store::Traffic::Uses wire_since(const store::Traffic::Uses& before) const;
  void add_wire(const store::Traffic::Uses& of_rank, StepResult* result) const;
  Status exchange_boxes();
  Status exchange_squares();
  Status exchange_tokens();
  void find_needed();
  // Tokens, the rows of the embedding that they need, and word of the weights that will be needed.
  Status begin_wave(const Batch& batch, int64_t first, int64_t count, bool backward);
  Status fetch_embedding();
  Status deal_parts(int64_t deal, bool first_wave, Compute compute);
  Status embedding_parts(int64_t count, bool first_wave);
  int64_t find_bad_layer(int64_t slot) const;
  std::optional<Error> nonfinite(const StepInput& input, double norm) const;
  int64_t micro_batches(const Batch& batch) const {
    return (batch.samples + p_.options->micro_batch - 1) / p_.options->micro_batch;
  }

  model::Rows rows(const Batch& batch, int64_t accumulation) const;
  model::LossRows loss_rows(const Batch& batch, int64_t accumulation, int64_t index) const;
  model::Kept<E> kept(int64_t layer, int64_t index, int64_t row_count) const;
  // Most rows of a micro-batch.
  int64_t micro_rows() const { return p_.options->micro_batch * p_.options->sequence_length; }
  int ranks() const { return p_.group->local_size(); }  // of the node
  int world() const { return p_.group->size(); }
  int me() const { return p_.group->rank(); }
  int local_me() const { return p_.group->local_rank(); }
  int rank_of(int local_rank) const {
    return p_.group->nodes().on(p_.group->node())[static_cast<size_t>(local_rank)];
  }
  const Mailbox& local_box(int local_rank) const { return box(rank_of(local_rank)); }
  // A rank's record: a box, then the sums of weights and of weighted losses of its micro-batches.
  Mailbox& box(int rank) const {
    return *reinterpret_cast<Mailbox*>(records_ + rank * record_stride_);
  }
  double& weight(int rank, int64_t accumulation) const {
    return reinterpret_cast<double*>(&box(rank) + 1)[accumulation];
  }
  double& loss(int rank, int64_t accumulation) const {
    return weight(rank, p_.options->accumulate + accumulation);
  }
  // A rank's micro-batch of the wave in the arena.
  E* slot(int local_rank, int64_t index) const {
    return arena_ + (local_rank * p_.plan->wave + index) * slot_elements_;
  }
  float* slot_floats(int local_rank, int64_t index) const {
    return floats_ + (local_rank * p_.plan->wave + index) * slot_float_count_;
  }
  // Tokens of a rank of the job in the wave, one micro-batch after the other; before them their number.
  int32_t* tokens_of(int rank) const { return tokens_ + rank * token_stride_ + 1; }
  int32_t& token_count(int rank) const { return tokens_[rank * token_stride_]; }
  // x of a layer (layers: output of the last), kept.
  E* input(int64_t layer, int64_t index) const {
    return inputs_ + (layer * p_.plan->wave + index) * micro_rows() * p_.config->hidden_size;
  }

  Parts p_;
  std::unique_ptr<model::Decoder<E>> decoder_;
  std::unique_ptr<model::Head<E>> head_;
  std::unique_ptr<StepControl> control_;
  comm::SharedMemory shared_;
  Buffer kept_, work_;
  // Shared, within shared_.
  std::byte* records_ = nullptr;  // [world]
  int64_t record_stride_ = 0;
  double* squares_ = nullptr;  // [panels] of gradients
  double* packed_ = nullptr;   // [panels] the same, owner after owner; several nodes
  E* embedding_ = nullptr;     // [rows that the node's tokens need, D]; several nodes
  int32_t* tokens_ = nullptr;  // [world, 1 + wave x rows]
  int64_t token_stride_ = 0;
  float* floats_ = nullptr;  // [ranks, wave, floats of a slot]
  E* arena_ = nullptr;       // [ranks, wave, elements of a slot]
  int64_t slot_elements_ = 0, slot_float_count_ = 0;
  // Private, within kept_ and work_.
  E* inputs_ = nullptr;  // [layers + 1, wave, rows, D]
  E* kept_elements_ = nullptr;
  float* kept_floats_ = nullptr;
  model::KeptSize kept_size_;
  E* gradient_ = nullptr;       // [wave, rows, D] of the residual stream
  E* deferred_ = nullptr;       // [accumulate, rows, D], only when the embedding's part is deferred
  float* dnormed_ = nullptr;    // [wave, rows, D]
  float* loss_rows_ = nullptr;  // [4, wave, rows]
  float* scale_ = nullptr;      // [accumulate, rows]
  std::vector<typename kernels::Gemm<E>::Pair> pairs_;  // of rounded_gradient()
  float* block_ = nullptr;  // fp32 block of dW, kGradientBlockBytes or a panel of the widest
  // Scratch: (row, place) of tokens whose embedding's gradient this rank computes, ascending.
  std::vector<uint64_t> embedding_rows_;
  std::vector<Needed> needed_;   // by node
  std::vector<E> staged_;        // rows of the embedding on their way to other nodes
  std::vector<int32_t> places_;  // of this rank's tokens among the rows that its node needs
  std::unique_ptr<store::GradientExchange> exchange_;
  E* norm_ = nullptr;  // [D] the final norm's weight
  uint64_t embedding_fetches_ = 0;
  bool in_disorder_ = false;
  bool failed_after_commit_ = false;
};

// fp32 scratch that rows of dW are summed in when gradients are kept in bf16. Large, since each product converts all of X to the tiles'
// layout: with 256 rows at a time oneDNN's dW ran at 0.9 TFLOP/s on two AMX cores, with 16 MiB at 1.7.
inline constexpr int64_t kGradientBlockBytes = int64_t{16} << 20;

}  // namespace amxt::train
