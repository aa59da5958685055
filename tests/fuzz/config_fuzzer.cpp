// Any text as a config.json: refused in one line, or sizes that overflow nowhere.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/config.h"
#include "model/tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = amxt::model::parse_config(text, "config.json");
  if (!config) {
    if (config.error().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  if (config->heads % config->kv_heads != 0 || config->head_dim % 2 != 0) std::abort();
  if (amxt::model::parameter_count(*config) > INT64_MAX / 16) std::abort();
  if (amxt::model::matmul_parameter_count(*config) <= 0) std::abort();
  for (const float frequency : amxt::model::rope_inverse_frequencies(*config)) {
    if (!std::isfinite(frequency)) std::abort();
  }
  return 0;
}
