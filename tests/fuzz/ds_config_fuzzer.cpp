// ds_config files: any text gives options within their ranges, or an error of one line.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "train/ds_config.h"

namespace {

void check(const amxt::Error& error) {
  if (error.message().find('\n') != std::string::npos || error.message().size() > 4096) abort();
}

void check(const amxt::train::EffectiveOptions& options) {
  if (!amxt::train::check_ranges(options)) abort();
  if (options.global_batch() < 1) abort();
  for (const int64_t step : {0, 1, 2, 1000, 1000000}) {
    if (!std::isfinite(options.schedule.rate(step))) abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = amxt::train::parse_ds_config(text, "ds_config.json");
  if (!config) {
    check(config.error());
    return 0;
  }
  amxt::train::TrainOptions given;
  for (const int64_t world : {1, 3}) {
    const auto options = amxt::train::resolve(given, &*config, world);
    if (options) {
      check(*options);
    } else {
      check(options.error());
    }
    given.micro_batch = 2;
    given.accumulate = 3;
    given.learning_rate = 1e-4;
    given.compute_type = amxt::train::ComputeType::kBFloat16;
    given.total_steps = 100;
  }
  return 0;
}
