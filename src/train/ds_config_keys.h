// The keys of a ds_config, section by section: what is done with each, and why.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace amxt::train {

enum class DsUse : int32_t {
  kHonour,   // read by code
  kSection,  // an object with keys of its own, in another table
  kAccept,   // any value; `why` says why it means nothing here
  kOff,      // refused unless it is off: null, false, 1 or less, "auto", "none", or empty
  kDisabled  // an object that is refused when its "enabled" is true; nothing else in it is read
};

struct DsKey {
  std::string_view name;
  DsUse use;
  // kAccept: why it has no effect. kOff, kDisabled: what is missing here.
  std::string_view why;
};

enum class DsSection : int32_t {
  kTop,
  kBf16,
  kFp16,
  kZero,
  kOffloadParam,
  kOffloadOptimizer,
  kOptimizer,
  kOptimizerParams,
  kScheduler,
  kSchedulerParams,
  kDataTypes
};

std::span<const DsKey> ds_keys(DsSection section);

// The key of the section that `name` may have been meant to be; empty when none is near.
std::string_view nearest_ds_key(DsSection section, std::string_view name);

}  // namespace amxt::train
