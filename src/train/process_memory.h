// The memory of this process, as the kernel counts it.
#pragma once

#include <cstdint>

namespace amxt::train {

struct ProcessMemory {
  int64_t private_bytes = 0, pss_bytes = 0, peak_rss_bytes = 0;
};
ProcessMemory process_memory();

}  // namespace amxt::train
