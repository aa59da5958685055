#include "train/process_memory.h"

#include <sys/resource.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

namespace amxt::train {

ProcessMemory process_memory() {
  ProcessMemory memory;
  int64_t shared_bytes = 0;
  std::ifstream file("/proc/self/smaps_rollup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const int64_t bytes = std::atoll(line.c_str() + colon + 1) * 1024;
    const std::string_view key = std::string_view(line).substr(0, colon);
    if (key == "Pss") memory.pss_bytes = bytes;
    if (key == "Pss_Shmem") shared_bytes = bytes;
  }
  // By kind of memory, not by who has touched a page so far: a shared page that one rank alone has read is shared all the same.
  memory.private_bytes = memory.pss_bytes - shared_bytes;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  memory.peak_rss_bytes = usage.ru_maxrss * int64_t{1024};
  return memory;
}

}  // namespace amxt::train
