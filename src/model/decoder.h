// One decoder layer, forward and backward, for one micro-batch; it knows nothing of ranks, owners or where weights live.
//
// Legend: M = samples x T rows, D hidden, Q = heads x head_dim, KV = kv_heads x head_dim, I intermediate. E is float or bf16.
// Everything is row-major; q, k and v are parts of one [M, Q + 2 KV] matrix, gate and up of one [M, 2 I].
//
// The backward leaves what the gradients of weights are made of, the pairs (X, dY) of each matrix, in memory that the caller
// gives (LayerGradients): the owners of weight rows take it from there. Recomputing what was not kept runs the very functions of the
// forward on the same inputs, so kept or recomputed never changes a bit.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "base/cpu.h"
#include "base/thread_pool.h"
#include "kernels/gemm.h"
#include "model/config.h"

namespace amxt::model {

// Weights of one layer; absent biases and norms are null.
template <typename E>
struct LayerWeights {
  const E* input_norm = nullptr;    // [D]
  const E* qkv = nullptr;           // [Q + 2 KV, D]
  const E* qkv_bias = nullptr;      // [Q + 2 KV]
  const E* query_norm = nullptr;    // [head_dim]
  const E* key_norm = nullptr;      // [head_dim]
  const E* output = nullptr;        // [D, Q]
  const E* output_bias = nullptr;   // [D]
  const E* post_norm = nullptr;     // [D]
  const E* gate_up = nullptr;       // [2 I, D]
  const E* gate_up_bias = nullptr;  // [2 I]
  const E* down = nullptr;          // [D, I]
  const E* down_bias = nullptr;     // [D]
};

// Rows of a micro-batch: `samples` sequences of `sequence` positions each.
struct Rows {
  int64_t samples = 1;
  int64_t sequence = 0;                     // T
  const int32_t* position = nullptr;        // [M]
  const int32_t* document_start = nullptr;  // [M], within the sample

  int64_t count() const { return samples * sequence; }
};

// How much of a forward is kept for the backward.
enum class Keep : int32_t { kInputs = 0, kAttention = 1, kAll = 2 };

// What a forward keeps of one layer and micro-batch besides its input; null members were not kept.
template <typename E>
struct Kept {
  E* attention = nullptr;  // [M, Q]
  float* lse = nullptr;    // [samples, heads, T]
  E* qkv_raw = nullptr;    // [M, Q + 2 KV] before q/k norm; only with qk_norm
  E* qkv = nullptr;        // [M, Q + 2 KV] after bias, norm and rotation
  E* middle = nullptr;     // [M, D] after attention's residual addition
  E* gate_up = nullptr;    // [M, 2 I]
};

// Elements of E per row, and floats per row, that Kept needs at a level.
struct KeptSize {
  int64_t elements_per_row = 0;
  int64_t floats_per_row = 0;
};
KeptSize kept_size(const ModelConfig& config, Keep keep);
template <typename E>
Kept<E> place_kept(const ModelConfig& config, Keep keep, int64_t rows, E* elements, float* floats);

// The pairs that gradients of weights are made of: dW = dY^T X.
template <typename E>
struct LayerGradients {
  E* normed = nullptr;           // X of qkv [M, D]
  E* dqkv = nullptr;             // dY of qkv [M, Q + 2 KV]
  E* attention = nullptr;        // X of output [M, Q]
  E* dmiddle = nullptr;          // dY of output [M, D]
  E* normed_post = nullptr;      // X of gate_up [M, D]
  E* dgate_up = nullptr;         // dY of gate_up [M, 2 I]
  E* activated = nullptr;        // X of down [M, I]
  E* dout = nullptr;             // dY of down [M, D]
  float* dinput_norm = nullptr;  // [D], sum over the micro-batch
  float* dpost_norm = nullptr;   // [D]
  float* dquery_norm = nullptr;  // [head_dim]
  float* dkey_norm = nullptr;    // [head_dim]
};
int64_t layer_gradients_elements_per_row(const ModelConfig& config);
int64_t layer_gradients_floats(const ModelConfig& config);  // per micro-batch
template <typename E>
LayerGradients<E> place_layer_gradients(const ModelConfig& config, int64_t rows, E* elements,
                                        float* floats);

// Scratch and plans for layers of one shape; no allocation after create(). Used by one thread at a time (it runs its pool).
template <typename E>
class Decoder {
 public:
  static Result<std::unique_ptr<Decoder>> create(const ModelConfig& config, ThreadPool* pool,
                                                 Isa isa, kernels::Gemm<E>* gemm, int64_t max_rows,
                                                 int64_t max_sequence);

  // y[M, D] = layer(x[M, D]); fills the non-null members of `kept`.
  Status forward(const LayerWeights<E>& weights, const Rows& rows, const E* x, E* y,
                 const Kept<E>& kept);

  // gradient[M, D]: of the layer's output on entry, of its input on return.
  Status backward(const LayerWeights<E>& weights, const Rows& rows, const E* x, const Kept<E>& kept,
                  E* gradient, const LayerGradients<E>& out);

  int64_t scratch_bytes() const { return scratch_.bytes(); }
  static int64_t scratch_bytes_needed(const ModelConfig& config, int64_t max_rows,
                                      int64_t max_sequence, int threads);

 private:
  Decoder(const ModelConfig& config, ThreadPool* pool, Isa isa, kernels::Gemm<E>* gemm)
      : config_(config), pool_(pool), isa_(isa), gemm_(gemm) {}
  Status attention_half(const LayerWeights<E>& weights, const Rows& rows, const E* x, E* normed,
                        E* qkv_raw, E* qkv, float* lse, E* attention, bool attention_known,
                        E* middle);
  Status mlp_first_half(const LayerWeights<E>& weights, const Rows& rows, const E* middle,
                        E* normed, E* gate_up);
  void norm(int64_t rows, const E* x, const E* weight, E* y);
  void norm_backward(int64_t rows, const E* x, const E* weight, const E* dy, const E* residual,
                     E* dx, float* dweight);
  void rotate(const Rows& rows, E* qkv, bool inverse);
  void head_norms(const Rows& rows, const LayerWeights<E>& weights, const E* raw, E* qkv);
  void head_norms_backward(const Rows& rows, const LayerWeights<E>& weights, const E* raw, E* dqkv,
                           float* dquery_norm, float* dkey_norm);
  void add_bias(int64_t rows, int64_t columns, E* x, const E* bias);
  // For the pool's trace.
  Span elementwise(const char* name, int64_t elements) const;
  Span product(const char* name, int64_t rows, int64_t out, int64_t in) const;
  Span attention_span(const char* name, int64_t T, int flop) const;
  int64_t qkv_columns() const { return config_.query_size() + 2 * config_.kv_size(); }

  ModelConfig config_;
  ThreadPool* pool_;
  Isa isa_;
  kernels::Gemm<E>* gemm_;
  Buffer scratch_;
  Buffer rope_;
  float* cosine_ = nullptr;
  float* sine_ = nullptr;
  E* normed_ = nullptr;
  E* qkv_raw_ = nullptr;
  E* qkv_ = nullptr;
  E* attention_ = nullptr;
  E* middle_ = nullptr;
  E* gate_up_ = nullptr;
  E* activated_ = nullptr;
  E* d_wide_ = nullptr;    // [M, max(I, Q)]
  E* d_hidden_ = nullptr;  // [M, D]
  float* lse_ = nullptr;
  float* partial_ = nullptr;  // [row blocks, max(D, 2 head_dim)]
  std::byte* attention_scratch_ = nullptr;
};

// Rows that one task of a row-wise kernel takes; fixed, so that sums over rows have one order.
inline constexpr int64_t kRowBlock = 32;

}  // namespace amxt::model
