#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/carver.h"
#include "kernels/attention.h"
#include "kernels/rows.h"

namespace amxt::model {
namespace {

int64_t qkv_width(const ModelConfig& c) { return c.query_size() + 2 * c.kv_size(); }
int64_t row_blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

kernels::AttentionShape attention_shape(const ModelConfig& config, int64_t tokens,
                                        const int32_t* document_start) {
  kernels::AttentionShape shape;
  shape.tokens = tokens;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  shape.document_start = document_start;
  return shape;
}

}  // namespace

KeptSize kept_size(const ModelConfig& config, Keep keep) {
  KeptSize size;
  if (keep == Keep::kInputs) return size;
  size.elements_per_row += config.query_size();
  size.floats_per_row += config.heads;
  if (keep == Keep::kAll) {
    size.elements_per_row += qkv_width(config) * (config.qk_norm ? 2 : 1) + config.hidden_size +
                             2 * config.intermediate_size;
  }
  return size;
}

template <typename E>
Kept<E> place_kept(const ModelConfig& config, Keep keep, int64_t rows, E* elements, float* floats) {
  Kept<E> kept;
  const auto take = [&](int64_t columns) {
    E* at = elements;
    elements += rows * columns;
    return at;
  };
  if (keep == Keep::kInputs) return kept;
  kept.attention = take(config.query_size());
  kept.lse = floats;
  if (keep == Keep::kAll) {
    if (config.qk_norm) kept.qkv_raw = take(qkv_width(config));
    kept.qkv = take(qkv_width(config));
    kept.middle = take(config.hidden_size);
    kept.gate_up = take(2 * config.intermediate_size);
  }
  return kept;
}

int64_t layer_gradients_elements_per_row(const ModelConfig& c) {
  return 4 * c.hidden_size + qkv_width(c) + c.query_size() + 3 * c.intermediate_size;
}

int64_t layer_gradients_floats(const ModelConfig& c) { return 2 * c.hidden_size + 2 * c.head_dim; }

template <typename E>
LayerGradients<E> place_layer_gradients(const ModelConfig& c, int64_t rows, E* elements,
                                        float* floats) {
  LayerGradients<E> g;
  const auto take = [&](int64_t columns) {
    E* at = elements;
    elements += rows * columns;
    return at;
  };
  g.normed = take(c.hidden_size);
  g.dqkv = take(qkv_width(c));
  g.attention = take(c.query_size());
  g.dmiddle = take(c.hidden_size);
  g.normed_post = take(c.hidden_size);
  g.dgate_up = take(2 * c.intermediate_size);
  g.activated = take(c.intermediate_size);
  g.dout = take(c.hidden_size);
  g.dinput_norm = floats;
  g.dpost_norm = floats + c.hidden_size;
  g.dquery_norm = floats + 2 * c.hidden_size;
  g.dkey_norm = g.dquery_norm + c.head_dim;
  return g;
}

template <typename E>
int64_t Decoder<E>::scratch_bytes_needed(const ModelConfig& c, int64_t max_rows,
                                         int64_t max_sequence, int threads) {
  Carver carver(nullptr);
  carver.take<E>(max_rows *
                 (2 * c.hidden_size + qkv_width(c) * 2 + c.query_size() + c.hidden_size +
                  3 * c.intermediate_size + std::max(c.intermediate_size, c.query_size())));
  carver.take<float>(max_rows * c.heads);
  carver.take<float>(row_blocks(max_rows) * std::max(c.hidden_size, 2 * c.head_dim));
  return carver.used() +
         kernels::attention_scratch_bytes(attention_shape(c, max_sequence, nullptr), threads) +
         16 * kCacheLine;
}

template <typename E>
Result<std::unique_ptr<Decoder<E>>> Decoder<E>::create(const ModelConfig& config, ThreadPool* pool,
                                                       Isa isa, kernels::Gemm<E>* gemm,
                                                       int64_t max_rows, int64_t max_sequence) {
  std::unique_ptr<Decoder> decoder(new Decoder(config, pool, isa, gemm));
  AMXT_ASSIGN(
      decoder->scratch_,
      Buffer::allocate(scratch_bytes_needed(config, max_rows, max_sequence, pool->threads()),
                       "scratch of a decoder layer"));
  Carver carver(decoder->scratch_.data());
  const ModelConfig& c = config;
  decoder->normed_ = carver.take<E>(max_rows * c.hidden_size);
  decoder->qkv_raw_ = carver.take<E>(max_rows * qkv_width(c));
  decoder->qkv_ = carver.take<E>(max_rows * qkv_width(c));
  decoder->attention_ = carver.take<E>(max_rows * c.query_size());
  decoder->middle_ = carver.take<E>(max_rows * c.hidden_size);
  decoder->gate_up_ = carver.take<E>(max_rows * 2 * c.intermediate_size);
  decoder->activated_ = carver.take<E>(max_rows * c.intermediate_size);
  decoder->d_wide_ = carver.take<E>(max_rows * std::max(c.intermediate_size, c.query_size()));
  decoder->d_hidden_ = carver.take<E>(max_rows * c.hidden_size);
  decoder->lse_ = carver.take<float>(max_rows * c.heads);
  decoder->partial_ =
      carver.take<float>(row_blocks(max_rows) * std::max(c.hidden_size, 2 * c.head_dim));
  decoder->attention_scratch_ = carver.take<std::byte>(
      kernels::attention_scratch_bytes(attention_shape(c, max_sequence, nullptr), pool->threads()));
  const int64_t angles = max_sequence * (c.head_dim / 2);
  AMXT_ASSIGN(decoder->rope_,
              Buffer::allocate(2 * angles * static_cast<int64_t>(sizeof(float)), "rotary tables"));
  decoder->cosine_ = decoder->rope_.template as<float>();
  decoder->sine_ = decoder->cosine_ + angles;
  rope_tables(config, max_sequence, decoder->cosine_, decoder->sine_);
  return decoder;
}

// Elements that an operation reads or writes; products are told by their FLOP.
template <typename E>
Span Decoder<E>::elementwise(const char* name, int64_t elements) const {
  return Span(pool_->trace(), name, 0, static_cast<double>(elements) * sizeof(E));
}
template <typename E>
Span Decoder<E>::product(const char* name, int64_t rows, int64_t out, int64_t in) const {
  return Span(pool_->trace(), name,
              2.0 * static_cast<double>(rows * out) * static_cast<double>(in));
}

// FLOP of each pair of positions that see each other and each element of a head; a document of the whole sequence is assumed.
template <typename E>
Span Decoder<E>::attention_span(const char* name, int64_t T, int flop) const {
  const double pairs = 0.5 * static_cast<double>(T) * static_cast<double>(T + 1);
  return Span(pool_->trace(), name, flop * pairs * static_cast<double>(config_.query_size()));
}

template <typename E>
void Decoder<E>::norm(int64_t rows, const E* x, const E* weight, E* y) {
  const int64_t dim = config_.hidden_size;
  const Span span = elementwise("norm", 2 * rows * dim);
  pool_->run_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    kernels::rms_norm_forward(isa_, end - begin, dim, x + begin * dim, dim, weight,
                              static_cast<float>(config_.rms_norm_eps), y + begin * dim, dim,
                              nullptr);
  });
}

template <typename E>
void Decoder<E>::norm_backward(int64_t rows, const E* x, const E* weight, const E* dy,
                               const E* residual, E* dx, float* dweight) {
  const int64_t dim = config_.hidden_size;
  const Span span = elementwise("norm backward", 4 * rows * dim);
  pool_->run_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    float* partial = partial_ + begin / kRowBlock * dim;
    std::memset(partial, 0, static_cast<size_t>(dim) * sizeof(float));
    kernels::rms_norm_backward(isa_, end - begin, dim, x + begin * dim, dim, weight,
                               static_cast<float>(config_.rms_norm_eps), nullptr, dy + begin * dim,
                               dim, residual + begin * dim, dim, dx + begin * dim, dim, partial);
  });
  std::memset(dweight, 0, static_cast<size_t>(dim) * sizeof(float));
  for (int64_t block = 0; block < row_blocks(rows); ++block)
    kernels::accumulate(isa_, dim, partial_ + block * dim, dweight);
}

template <typename E>
void Decoder<E>::add_bias(int64_t rows, int64_t columns, E* x, const E* bias) {
  if (bias == nullptr) return;
  const Span span = elementwise("bias", 2 * rows * columns);
  pool_->run_blocks(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    kernels::add_bias(isa_, end - begin, columns, x + begin * columns, columns, bias);
  });
}

template <typename E>
void Decoder<E>::rotate(const Rows& rows, E* qkv, bool inverse) {
  const int64_t ld = qkv_columns();
  const Span span =
      elementwise("rotation", 2 * rows.count() * (config_.query_size() + config_.kv_size()));
  pool_->run_blocks(rows.count(), kRowBlock, [&](int64_t begin, int64_t end) {
    // q and k are adjacent heads of one row.
    kernels::rope(isa_, end - begin, config_.heads + config_.kv_heads, config_.head_dim,
                  qkv + begin * ld, ld, rows.position + begin, cosine_, sine_, inverse);
  });
}

template <typename E>
void Decoder<E>::head_norms(const Rows& rows, const LayerWeights<E>& weights, const E* raw,
                            E* qkv) {
  const int64_t ld = qkv_columns(), dim = config_.head_dim;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const Span span = elementwise("head norms", 2 * rows.count() * ld);
  pool_->run_blocks(rows.count(), kRowBlock, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const E* from = raw + row * ld;
      E* to = qkv + row * ld;
      kernels::rms_norm_forward(isa_, config_.heads, dim, from, dim, weights.query_norm, eps, to,
                                dim, nullptr);
      from += config_.query_size();
      to += config_.query_size();
      kernels::rms_norm_forward(isa_, config_.kv_heads, dim, from, dim, weights.key_norm, eps, to,
                                dim, nullptr);
      std::memcpy(to + config_.kv_size(), from + config_.kv_size(),
                  static_cast<size_t>(config_.kv_size()) * sizeof(E));
    }
  });
}

template <typename E>
void Decoder<E>::head_norms_backward(const Rows& rows, const LayerWeights<E>& weights, const E* raw,
                                     E* dqkv, float* dquery_norm, float* dkey_norm) {
  const int64_t ld = qkv_columns(), dim = config_.head_dim;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const Span span = elementwise("head norms backward", 3 * rows.count() * ld);
  pool_->run_blocks(rows.count(), kRowBlock, [&](int64_t begin, int64_t end) {
    float* query_partial = partial_ + begin / kRowBlock * 2 * dim;
    float* key_partial = query_partial + dim;
    std::memset(query_partial, 0, static_cast<size_t>(2 * dim) * sizeof(float));
    for (int64_t row = begin; row < end; ++row) {
      const E* x = raw + row * ld;
      E* d = dqkv + row * ld;
      kernels::rms_norm_backward(isa_, config_.heads, dim, x, dim, weights.query_norm, eps, nullptr,
                                 d, dim, static_cast<const E*>(nullptr), 0, d, dim, query_partial);
      x += config_.query_size();
      d += config_.query_size();
      kernels::rms_norm_backward(isa_, config_.kv_heads, dim, x, dim, weights.key_norm, eps,
                                 nullptr, d, dim, static_cast<const E*>(nullptr), 0, d, dim,
                                 key_partial);
    }
  });
  std::memset(dquery_norm, 0, static_cast<size_t>(dim) * sizeof(float));
  std::memset(dkey_norm, 0, static_cast<size_t>(dim) * sizeof(float));
  for (int64_t block = 0; block < row_blocks(rows.count()); ++block) {
    kernels::accumulate(isa_, dim, partial_ + block * 2 * dim, dquery_norm);
    kernels::accumulate(isa_, dim, partial_ + block * 2 * dim + dim, dkey_norm);
  }
}

// x -> normed -> qkv -> attention -> middle = x + output(attention). With attention_known, attention and lse are inputs.
template <typename E>
Status Decoder<E>::attention_half(const LayerWeights<E>& weights, const Rows& rows, const E* x,
                                  E* normed, E* qkv_raw, E* qkv, float* lse, E* attention,
                                  bool attention_known, E* middle) {
  const int64_t M = rows.count(), D = config_.hidden_size, Q = config_.query_size(),
                KV = config_.kv_size(), W = qkv_columns();
  norm(M, x, weights.input_norm, normed);
  E* projected = config_.qk_norm ? qkv_raw : qkv;
  {
    const Span span = product("qkv", M, W, D);
    AMXT_TRY(gemm_->forward(M, W, D, normed, D, weights.qkv, D, projected, W));
  }
  add_bias(M, W, projected, weights.qkv_bias);
  if (config_.qk_norm) head_norms(rows, weights, qkv_raw, qkv);
  rotate(rows, qkv, false);
  if (!attention_known) {
    for (int64_t sample = 0; sample < rows.samples; ++sample) {
      const int64_t first = sample * rows.sequence;
      const auto shape = attention_shape(config_, rows.sequence, rows.document_start + first);
      const E* q = qkv + first * W;
      const Span span = attention_span("attention", rows.sequence, 4);
      kernels::attention_forward(*pool_, isa_, shape, q, W, q + Q, W, q + Q + KV, W,
                                 attention + first * Q, Q, lse + first * config_.heads,
                                 attention_scratch_);
    }
  }
  {
    const Span span = product("output", M, D, Q);
    AMXT_TRY(gemm_->forward(M, D, Q, attention, Q, weights.output, Q, middle, D));
  }
  add_bias(M, D, middle, weights.output_bias);
  const Span span = elementwise("residual", 3 * M * D);
  pool_->run_blocks(M, kRowBlock, [&](int64_t begin, int64_t end) {
    kernels::add_rows(isa_, end - begin, D, x + begin * D, D, middle + begin * D, D,
                      middle + begin * D, D);
  });
  return {};
}

template <typename E>
Status Decoder<E>::mlp_first_half(const LayerWeights<E>& weights, const Rows& rows, const E* middle,
                                  E* normed, E* gate_up) {
  const int64_t M = rows.count(), D = config_.hidden_size, I = config_.intermediate_size;
  norm(M, middle, weights.post_norm, normed);
  {
    const Span span = product("gate and up", M, 2 * I, D);
    AMXT_TRY(gemm_->forward(M, 2 * I, D, normed, D, weights.gate_up, D, gate_up, 2 * I));
  }
  add_bias(M, 2 * I, gate_up, weights.gate_up_bias);
  return {};
}

template <typename E>
Status Decoder<E>::forward(const LayerWeights<E>& weights, const Rows& rows, const E* x, E* y,
                           const Kept<E>& kept) {
  const int64_t M = rows.count(), D = config_.hidden_size, I = config_.intermediate_size;
  const auto or_scratch = [](auto* wanted, auto* scratch) {
    return wanted != nullptr ? wanted : scratch;
  };
  E* middle = or_scratch(kept.middle, middle_);
  E* gate_up = or_scratch(kept.gate_up, gate_up_);
  AMXT_TRY(attention_half(weights, rows, x, normed_, or_scratch(kept.qkv_raw, qkv_raw_),
                          or_scratch(kept.qkv, qkv_), or_scratch(kept.lse, lse_),
                          or_scratch(kept.attention, attention_), false, middle));
  AMXT_TRY(mlp_first_half(weights, rows, middle, normed_, gate_up));
  {
    const Span span = elementwise("swiglu", 3 * M * I);
    pool_->run_blocks(M, kRowBlock, [&](int64_t begin, int64_t end) {
      const E* gate = gate_up + begin * 2 * I;
      kernels::swiglu_forward(isa_, end - begin, I, gate, 2 * I, gate + I, 2 * I,
                              activated_ + begin * I, I);
    });
  }
  {
    const Span span = product("down", M, D, I);
    AMXT_TRY(gemm_->forward(M, D, I, activated_, I, weights.down, I, y, D));
  }
  add_bias(M, D, y, weights.down_bias);
  const Span span = elementwise("residual", 3 * M * D);
  pool_->run_blocks(M, kRowBlock, [&](int64_t begin, int64_t end) {
    kernels::add_rows(isa_, end - begin, D, middle + begin * D, D, y + begin * D, D, y + begin * D,
                      D);
  });
  return {};
}

template <typename E>
Status Decoder<E>::backward(const LayerWeights<E>& weights, const Rows& rows, const E* x,
                            const Kept<E>& kept, E* gradient, const LayerGradients<E>& out) {
  const int64_t M = rows.count(), D = config_.hidden_size, I = config_.intermediate_size;
  const int64_t Q = config_.query_size(), KV = config_.kv_size(), W = qkv_columns();
  const auto copy = [&](const E* from, E* to, int64_t columns) {
    const Span span = elementwise("copy", 2 * M * columns);
    pool_->run_blocks(M, kRowBlock, [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin * columns, from + begin * columns,
                  static_cast<size_t>((end - begin) * columns) * sizeof(E));
    });
  };

  // What the forward did not keep, once more.
  const E* qkv = kept.qkv;
  const E* qkv_raw = kept.qkv_raw;
  const E* middle = kept.middle;
  const E* gate_up = kept.gate_up;
  const float* lse = kept.lse;
  if (kept.attention != nullptr) copy(kept.attention, out.attention, Q);
  if (kept.qkv == nullptr) {
    float* own_lse = kept.lse != nullptr ? kept.lse : lse_;
    AMXT_TRY(attention_half(weights, rows, x, out.normed, qkv_raw_, qkv_, own_lse, out.attention,
                            kept.attention != nullptr, middle_));
    AMXT_TRY(mlp_first_half(weights, rows, middle_, out.normed_post, gate_up_));
    qkv = qkv_;
    qkv_raw = qkv_raw_;
    middle = middle_;
    gate_up = gate_up_;
    lse = own_lse;
  } else {
    norm(M, x, weights.input_norm, out.normed);
    norm(M, middle, weights.post_norm, out.normed_post);
  }

  // MLP: y = middle + down(swiglu(gate_up(norm(middle)))).
  copy(gradient, out.dout, D);
  {
    const Span span = product("down dX", M, D, I);
    AMXT_TRY(gemm_->grad_input(M, D, I, gradient, D, weights.down, I, d_wide_, I));
  }
  {
    const Span span = elementwise("swiglu backward", 6 * M * I);
    pool_->run_blocks(M, kRowBlock, [&](int64_t begin, int64_t end) {
      const E* gate = gate_up + begin * 2 * I;
      E* dgate = out.dgate_up + begin * 2 * I;
      kernels::swiglu_backward(isa_, end - begin, I, gate, 2 * I, gate + I, 2 * I,
                               d_wide_ + begin * I, I, dgate, 2 * I, dgate + I, 2 * I,
                               out.activated + begin * I, I);
    });
  }
  {
    const Span span = product("gate and up dX", M, 2 * I, D);
    AMXT_TRY(gemm_->grad_input(M, 2 * I, D, out.dgate_up, 2 * I, weights.gate_up, D, d_hidden_, D));
  }
  norm_backward(M, middle, weights.post_norm, d_hidden_, gradient, out.dmiddle, out.dpost_norm);

  // Attention: middle = x + output(attention(qkv(norm(x)))).
  {
    const Span span = product("output dX", M, D, Q);
    AMXT_TRY(gemm_->grad_input(M, D, Q, out.dmiddle, D, weights.output, Q, d_wide_, Q));
  }
  for (int64_t sample = 0; sample < rows.samples; ++sample) {
    const int64_t first = sample * rows.sequence;
    const auto shape = attention_shape(config_, rows.sequence, rows.document_start + first);
    const E* q = qkv + first * W;
    E* dq = out.dqkv + first * W;
    const Span span = attention_span("attention backward", rows.sequence, 10);
    kernels::attention_backward(*pool_, isa_, shape, q, W, q + Q, W, q + Q + KV, W,
                                out.attention + first * Q, Q, lse + first * config_.heads,
                                d_wide_ + first * Q, Q, dq, W, dq + Q, W, dq + Q + KV, W,
                                attention_scratch_);
  }
  rotate(rows, out.dqkv, true);
  if (config_.qk_norm)
    head_norms_backward(rows, weights, qkv_raw, out.dqkv, out.dquery_norm, out.dkey_norm);
  {
    const Span span = product("qkv dX", M, W, D);
    AMXT_TRY(gemm_->grad_input(M, W, D, out.dqkv, W, weights.qkv, D, d_hidden_, D));
  }
  norm_backward(M, x, weights.input_norm, d_hidden_, out.dmiddle, gradient, out.dinput_norm);
  return {};
}

template Kept<float> place_kept(const ModelConfig&, Keep, int64_t, float*, float*);
template Kept<bf16> place_kept(const ModelConfig&, Keep, int64_t, bf16*, float*);
template LayerGradients<float> place_layer_gradients(const ModelConfig&, int64_t, float*, float*);
template LayerGradients<bf16> place_layer_gradients(const ModelConfig&, int64_t, bf16*, float*);
template class Decoder<float>;
template class Decoder<bf16>;

}  // namespace amxt::model
