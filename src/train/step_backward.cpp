// A wave back through the head and the layers: dX of each rank's own micro-batches, then dW of the rows that each rank owns.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/rows.h"
#include "train/step.h"

namespace amxt::train {
namespace {

using model::Role;

// Rows of a matrix of K columns whose gradient is summed at a time: whole panels.
int64_t gradient_block_rows(int64_t K) {
  return std::max<int64_t>(1, kGradientBlockBytes / 4 / K / store::kPanelRows) * store::kPanelRows;
}

}  // namespace

template <typename E>
Status StepRunner<E>::head_backward(const Batch& batch, int64_t first, int64_t count,
                                    bool first_wave) {
  const int rank = local_me();
  const int64_t D = p_.config->hidden_size, V = p_.config->vocab_size,
                width = model::vocabulary_width(*p_.config);
  const auto normed = [&](int r, int64_t i) -> const E* { return slot(r, i); };
  const auto dlogits = [&](int r, int64_t i) -> const E* {
    return slot(r, i) + local_box(r).micro_rows * D;
  };
  for (int64_t block = 0; block * model::kVocabularyBlock < V; ++block) {
    const int64_t row = block * model::kVocabularyBlock, deal = p_.layout->head_deal(block),
                  n_rows = std::min(model::kVocabularyBlock, V - row);
    AMXT_ASSIGN(const E* const head, acquire(deal));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t a = first + i, n = rows(batch, a).count();
      AMXT_TRY(head_->backward_block(n, slot(rank, i), head, row, n_rows, loss_rows(batch, a, i),
                                     scale_ + a * micro_rows(), slot(rank, i) + n * D, width,
                                     dnormed_ + i * micro_rows() * D, block == 0));
    }
    p_.parameters->release(deal);
    AMXT_TRY(barrier());
    AMXT_TRY(deal_gradient(
        deal, first_wave, [&](const store::OwnedRange& range, const GradientRows& to) {
          return matrix_gradient(range, to, count, normed, dlogits, width, range.row_begin - row);
        }));
    AMXT_TRY(barrier());
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = rows(batch, first + i).count();
    head_->norm_backward(n, input(p_.config->layers, i), norm_, dnormed_ + i * micro_rows() * D,
                         gradient_ + i * micro_rows() * D,
                         slot_floats(rank, i) + model::layer_gradients_floats(*p_.config));
  }
  return {};
}

template <typename E>
Status StepRunner<E>::layers_backward(const Batch& batch, int64_t first, int64_t count,
                                      bool first_wave) {
  const int64_t D = p_.config->hidden_size;
  for (int64_t layer = p_.config->layers - 1; layer >= 0; --layer) {
    const int64_t deal = p_.layout->layer_deal(layer);
    AMXT_ASSIGN(const E* const there, acquire(deal));
    const model::LayerWeights<E> weights = p_.parameters->layer_weights(layer, there);
    for (int64_t i = 0; i < count; ++i) {
      AMXT_TRY(poll());
      const model::Rows r = rows(batch, first + i);
      AMXT_TRY(decoder_->backward(
          weights, r, input(layer, i), kept(layer, i, r.count()), gradient_ + i * micro_rows() * D,
          model::place_layer_gradients(*p_.config, r.count(), slot(local_me(), i),
                                       slot_floats(local_me(), i))));
    }
    p_.parameters->release(deal);
    AMXT_TRY(barrier());
    AMXT_TRY(deal_gradient(deal, first_wave,
                           [&](const store::OwnedRange& range, const GradientRows& to) {
                             return layer_part(range, to, count);
                           }));
    if (layer == p_.config->layers - 1) {
      AMXT_TRY(deal_gradient(p_.layout->norm_deal(), first_wave,
                             [&](const store::OwnedRange& range, const GradientRows& to) {
                               return norm_part(range, to, count);
                             }));
    }
    AMXT_TRY(barrier());
  }
  return {};
}

template <typename E>
Status StepRunner<E>::deal_gradient(int64_t deal, bool first_wave, Compute compute) {
  if (has_nodes()) return deal_parts(deal, first_wave, compute);
  for (const store::OwnedRange& range : p_.layout->ranges(me(), deal)) {
    GradientRows to;
    to.add = !first_wave;
    if (p_.parameters->gradients_are_bf16()) {
      to.as_bf16 = p_.parameters->gradient_bf16(range);
    } else {
      to.as_float = p_.parameters->gradient_float(range);
    }
    AMXT_TRY(compute(range, to));
  }
  return {};
}

template <typename E>
Status StepRunner<E>::matrix_gradient(const store::OwnedRange& range, const GradientRows& to,
                                      int64_t count, Locator x, Locator dy, int64_t lddy,
                                      int64_t first_column) {
  const int64_t K = p_.layout->spec(range.tensor).columns;
  if constexpr (sizeof(E) == 2) {
    if (to.as_bf16 != nullptr && p_.gemm->sums_pairs())
      return rounded_gradient(range, to.as_bf16, count, x, dy, lddy, first_column);
  }
  const int64_t block_rows = gradient_block_rows(K);
  for (int64_t row = 0; row < range.rows(); row += block_rows) {
    const int64_t n = std::min(block_rows, range.rows() - row);
    float* const sum = to.as_float == nullptr ? block_ : to.as_float + row * K;
    bool add = to.add;
    for (int64_t i = 0; i < count; ++i) {
      for (int rank = 0; rank < ranks(); ++rank) {
        const Span span = p_.span("dW", 2.0 * static_cast<double>(local_box(rank).micro_rows * n) *
                                            static_cast<double>(K));
        AMXT_TRY(p_.gemm->grad_weight(local_box(rank).micro_rows, n, K,
                                      dy(rank, i) + first_column + row, lddy, x(rank, i), K, sum, K,
                                      add));
        add = true;
      }
    }
    if (to.as_float == nullptr) {
      bf16* rounded = to.as_bf16 + row * K;
      const Span span = p_.span("round dW", 0, 6.0 * static_cast<double>(n * K));
      const int64_t stored = p_.layout->stored_elements(range.tensor, n);
      p_.pool->run_blocks(stored, int64_t{1} << 15, [&](int64_t begin, int64_t end) {
        kernels::convert(p_.isa, end - begin, block_ + begin, rounded + begin);
      });
    }
  }
  return {};
}

// All micro-batches in one sum. Where it goes on in fp32 each is added by itself, so that bits do not depend on waves.
template <typename E>
Status StepRunner<E>::rounded_gradient(const store::OwnedRange& range, E* to, int64_t count,
                                       Locator x, Locator dy, int64_t lddy, int64_t first_column) {
  const int64_t K = p_.layout->spec(range.tensor).columns;
  pairs_.clear();
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int rank = 0; rank < ranks(); ++rank) {
      pairs_.push_back({dy(rank, i) + first_column, x(rank, i), local_box(rank).micro_rows});
      tokens += local_box(rank).micro_rows;
    }
  }
  const Span span =
      p_.span("dW", 2.0 * static_cast<double>(tokens * range.rows()) * static_cast<double>(K));
  return p_.gemm->grad_weight_of_pairs(pairs_, range.rows(), K, lddy, K, to);
}

template <typename E>
void StepRunner<E>::vector_gradient(const store::OwnedRange& range, const GradientRows& to,
                                    int64_t count, FunctionRef<void(int, int64_t, float*)> add) {
  const int64_t n = p_.layout->specs()[static_cast<size_t>(range.tensor)].columns;
  float* const sum = to.as_float == nullptr ? block_ : to.as_float;
  const Span span = p_.span("gradients of vectors");
  if (!to.add) std::fill_n(sum, n, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    for (int rank = 0; rank < ranks(); ++rank) add(rank, i, sum);
  }
  if (to.as_float == nullptr) kernels::convert(p_.isa, n, sum, to.as_bf16);
}

template <typename E>
Status StepRunner<E>::layer_part(const store::OwnedRange& range, const GradientRows& to,
                                 int64_t count) {
  const model::ModelConfig& c = *p_.config;
  const int64_t D = c.hidden_size, Q = c.query_size(), KV = c.kv_size(), I = c.intermediate_size,
                W = Q + 2 * KV;
  const auto pairs = [&](int rank, int64_t i) {
    return model::place_layer_gradients(c, local_box(rank).micro_rows, slot(rank, i),
                                        slot_floats(rank, i));
  };
  const auto normed = [&](int r, int64_t i) -> const E* { return pairs(r, i).normed; };
  const auto dqkv = [&](int r, int64_t i) -> const E* { return pairs(r, i).dqkv; };
  const auto attention = [&](int r, int64_t i) -> const E* { return pairs(r, i).attention; };
  const auto dmiddle = [&](int r, int64_t i) -> const E* { return pairs(r, i).dmiddle; };
  const auto normed_post = [&](int r, int64_t i) -> const E* { return pairs(r, i).normed_post; };
  const auto dgate_up = [&](int r, int64_t i) -> const E* { return pairs(r, i).dgate_up; };
  const auto activated = [&](int r, int64_t i) -> const E* { return pairs(r, i).activated; };
  const auto dout = [&](int r, int64_t i) -> const E* { return pairs(r, i).dout; };
  // Gradient of a bias: the column sums of dY.
  const int64_t columns = p_.layout->specs()[static_cast<size_t>(range.tensor)].columns;
  const auto bias = [&](Locator dy, int64_t ld, int64_t column) -> Status {
    vector_gradient(range, to, count, [&](int rank, int64_t i, float* sum) {
      kernels::sum_rows(p_.isa, local_box(rank).micro_rows, columns, dy(rank, i) + column, ld, sum);
    });
    return {};
  };
  const auto norm = [&](FunctionRef<const float*(int, int64_t)> partial) -> Status {
    vector_gradient(range, to, count, [&](int rank, int64_t i, float* sum) {
      kernels::accumulate(p_.isa, columns, partial(rank, i), sum);
    });
    return {};
  };
  const auto matrix = [&](Locator x, Locator dy, int64_t ld, int64_t column) -> Status {
    return matrix_gradient(range, to, count, x, dy, ld, column + range.row_begin);
  };
  AMXT_TRY(poll());
  switch (p_.layout->specs()[static_cast<size_t>(range.tensor)].role) {
    case Role::kQuery:
      return matrix(normed, dqkv, W, 0);
    case Role::kKey:
      return matrix(normed, dqkv, W, Q);
    case Role::kValue:
      return matrix(normed, dqkv, W, Q + KV);
    case Role::kOutput:
      return matrix(attention, dmiddle, D, 0);
    case Role::kGate:
      return matrix(normed_post, dgate_up, 2 * I, 0);
    case Role::kUp:
      return matrix(normed_post, dgate_up, 2 * I, I);
    case Role::kDown:
      return matrix(activated, dout, D, 0);
    case Role::kQueryBias:
      return bias(dqkv, W, 0);
    case Role::kKeyBias:
      return bias(dqkv, W, Q);
    case Role::kValueBias:
      return bias(dqkv, W, Q + KV);
    case Role::kOutputBias:
      return bias(dmiddle, D, 0);
    case Role::kGateBias:
      return bias(dgate_up, 2 * I, 0);
    case Role::kUpBias:
      return bias(dgate_up, 2 * I, I);
    case Role::kDownBias:
      return bias(dout, D, 0);
    case Role::kInputNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dinput_norm; });
    case Role::kPostNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dpost_norm; });
    case Role::kQueryNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dquery_norm; });
    case Role::kKeyNorm:
      return norm([&](int r, int64_t i) -> const float* { return pairs(r, i).dkey_norm; });
    default:
      return Error(Code::kInternal,
                   fmt::format("tensor {} is not a layer's",
                               p_.layout->specs()[static_cast<size_t>(range.tensor)].name));
  }
}

template <typename E>
Status StepRunner<E>::norm_part(const store::OwnedRange& range, const GradientRows& to,
                                int64_t count) {
  vector_gradient(range, to, count, [&](int rank, int64_t i, float* sum) {
    kernels::accumulate(p_.isa, p_.config->hidden_size,
                        slot_floats(rank, i) + model::layer_gradients_floats(*p_.config), sum);
  });
  return {};
}

#define AMXT_INSTANTIATE(E)                                                                       \
  template Status StepRunner<E>::head_backward(const Batch&, int64_t, int64_t, bool);             \
  template Status StepRunner<E>::layers_backward(const Batch&, int64_t, int64_t, bool);           \
  template Status StepRunner<E>::deal_gradient(int64_t, bool, Compute);                           \
  template Status StepRunner<E>::matrix_gradient(const store::OwnedRange&, const GradientRows&,   \
                                                 int64_t, Locator, Locator, int64_t, int64_t);    \
  template Status StepRunner<E>::rounded_gradient(const store::OwnedRange&, E*, int64_t, Locator, \
                                                  Locator, int64_t, int64_t);                     \
  template void StepRunner<E>::vector_gradient(const store::OwnedRange&, const GradientRows&,     \
                                               int64_t, FunctionRef<void(int, int64_t, float*)>); \
  template Status StepRunner<E>::layer_part(const store::OwnedRange&, const GradientRows&,        \
                                            int64_t);                                             \
  template Status StepRunner<E>::norm_part(const store::OwnedRange&, const GradientRows&, int64_t)

AMXT_INSTANTIATE(float);
AMXT_INSTANTIATE(bf16);

}  // namespace amxt::train
