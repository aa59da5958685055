// The rotation's tables, in the order of operations and the precision (fp32) of transformers' modeling_rope_utils: a
// reciprocal and a product where Python divides a scalar by a tensor, every step rounded to fp32.
#include <cmath>
#include <numbers>

#include "model/config.h"

namespace amxt::model {
namespace {

// Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
float scale_llama3(const Rope& rope, float inverse) {
  const auto original = static_cast<double>(rope.original_max_position_embeddings);
  const auto factor = static_cast<float>(rope.factor);
  const float wavelength = (1.0f / inverse) * static_cast<float>(2 * std::numbers::pi);
  const auto longest = static_cast<float>(original / rope.low_freq_factor);
  const auto shortest = static_cast<float>(original / rope.high_freq_factor);
  if (wavelength > longest) return inverse / factor;
  if (wavelength < shortest) return inverse;
  const float smooth = ((1.0f / wavelength) * static_cast<float>(original) -
                        static_cast<float>(rope.low_freq_factor)) /
                       static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  return (1.0f - smooth) * inverse / factor + smooth * inverse;
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const ModelConfig& config) {
  const Rope& rope = config.rope;
  const auto dim = static_cast<float>(config.head_dim);
  std::vector<float> inverse(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < inverse.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / dim;
    // The power in double and rounded once: within the last bit of any fp32 library's.
    const auto power = static_cast<float>(std::pow(
        static_cast<double>(static_cast<float>(rope.theta)), static_cast<double>(exponent)));
    inverse[i] = 1.0f / power;
    if (rope.type == RopeType::kLinear) inverse[i] /= static_cast<float>(rope.factor);
    if (rope.type == RopeType::kLlama3) inverse[i] = scale_llama3(rope, inverse[i]);
  }
  return inverse;
}

void rope_tables(const ModelConfig& config, int64_t positions, float* cosine, float* sine) {
  const std::vector<float> inverse = rope_inverse_frequencies(config);
  for (int64_t position = 0; position < positions; ++position) {
    for (const float frequency : inverse) {
      const auto angle = static_cast<double>(static_cast<float>(position) * frequency);
      *cosine++ = static_cast<float>(std::cos(angle));
      *sine++ = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace amxt::model
