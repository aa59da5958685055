#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"

namespace amxt::kernels {
namespace {

// Probabilities of one query over the tokens it sees, from `start` to itself; returns the log of the sum of exponentials.
template <typename E>
double probabilities(const AttentionShape& shape, const E* query, const E* keys, int64_t ldk,
                     int64_t start, int64_t token, std::vector<double>* p) {
  p->assign(static_cast<size_t>(token - start + 1), 0);
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t s = start; s <= token; ++s) {
    double dot = 0;
    for (int64_t c = 0; c < shape.head_dim; ++c) {
      dot += double(to_float(query[c])) * double(to_float(keys[s * ldk + c]));
    }
    (*p)[static_cast<size_t>(s - start)] = dot * double(shape.scale);
    largest = std::fmax(largest, dot * double(shape.scale));
  }
  double sum = 0;
  for (double& score : *p) sum += score = std::exp(score - largest);
  for (double& score : *p) score /= sum;
  return largest + std::log(sum);
}

}  // namespace

template <typename E>
void attention_forward_ref(const AttentionShape& shape, const E* q, int64_t ldq, const E* k,
                           int64_t ldk, const E* v, int64_t ldv, float* out, float* lse) {
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  std::vector<double> p, sum(static_cast<size_t>(dim));
  for (int64_t h = 0; h < shape.heads; ++h) {
    const int64_t kv = h / group * dim;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      const int64_t start = shape.document_start[t];
      lse[h * shape.tokens + t] = static_cast<float>(
          probabilities(shape, q + t * ldq + h * dim, k + kv, ldk, start, t, &p));
      sum.assign(static_cast<size_t>(dim), 0);
      for (int64_t s = start; s <= t; ++s) {
        for (int64_t c = 0; c < dim; ++c) {
          sum[static_cast<size_t>(c)] +=
              p[static_cast<size_t>(s - start)] * double(to_float(v[s * ldv + kv + c]));
        }
      }
      for (int64_t c = 0; c < dim; ++c) {
        out[(t * shape.heads + h) * dim + c] = static_cast<float>(sum[static_cast<size_t>(c)]);
      }
    }
  }
}

template <typename E>
void attention_backward_ref(const AttentionShape& shape, const E* q, int64_t ldq, const E* k,
                            int64_t ldk, const E* v, int64_t ldv, const E* dout, int64_t lddo,
                            float* dq, float* dk, float* dv) {
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  const auto kv_size = static_cast<size_t>(shape.tokens * shape.kv_heads * dim);
  std::vector<double> dk_sum(kv_size, 0), dv_sum(kv_size, 0), p, dp, dq_sum;
  for (int64_t h = 0; h < shape.heads; ++h) {
    const int64_t kv = h / group * dim;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      const int64_t start = shape.document_start[t];
      const E* query = q + t * ldq + h * dim;
      const E* gradient = dout + t * lddo + h * dim;
      probabilities(shape, query, k + kv, ldk, start, t, &p);
      dp.assign(p.size(), 0);
      double mean = 0;  // of dp under p: what soft-max's gradient subtracts
      for (size_t i = 0; i < p.size(); ++i) {
        for (int64_t c = 0; c < dim; ++c) {
          dp[i] += double(to_float(gradient[c])) *
                   double(to_float(v[(start + int64_t(i)) * ldv + kv + c]));
        }
        mean += p[i] * dp[i];
      }
      dq_sum.assign(static_cast<size_t>(dim), 0);
      for (size_t i = 0; i < p.size(); ++i) {
        const int64_t s = start + static_cast<int64_t>(i);
        const double ds = p[i] * (dp[i] - mean) * double(shape.scale);
        for (int64_t c = 0; c < dim; ++c) {
          const auto at = static_cast<size_t>(s * shape.kv_heads * dim + kv + c);
          dq_sum[static_cast<size_t>(c)] += ds * double(to_float(k[s * ldk + kv + c]));
          dk_sum[at] += ds * double(to_float(query[c]));
          dv_sum[at] += p[i] * double(to_float(gradient[c]));
        }
      }
      for (int64_t c = 0; c < dim; ++c) {
        dq[(t * shape.heads + h) * dim + c] = static_cast<float>(dq_sum[static_cast<size_t>(c)]);
      }
    }
  }
  for (size_t i = 0; i < kv_size; ++i) {
    dk[i] = static_cast<float>(dk_sum[i]);
    dv[i] = static_cast<float>(dv_sum[i]);
  }
}

#define AMXT_INSTANTIATE(E)                                                                        \
  template void attention_forward_ref(const AttentionShape&, const E*, int64_t, const E*, int64_t, \
                                      const E*, int64_t, float*, float*);                          \
  template void attention_backward_ref(const AttentionShape&, const E*, int64_t, const E*,         \
                                       int64_t, const E*, int64_t, const E*, int64_t, float*,      \
                                       float*, float*);
AMXT_INSTANTIATE(float)
AMXT_INSTANTIATE(bf16)
#undef AMXT_INSTANTIATE

}  // namespace amxt::kernels
