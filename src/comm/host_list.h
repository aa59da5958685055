// Host lists as Slurm writes them: "n[10,20-25],m1". Names separated by commas; in brackets numbers and ranges, whose zeros in front
// stay ("n[08-10]" is n08, n09, n10); several brackets in a name count like the digits of a clock, the last one fastest.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace amxt::comm {

inline constexpr size_t kMaxHosts = 65536;

// All names, in the list's order, at least one. kFormat for what is no such list, kLimit above kMaxHosts.
Result<std::vector<std::string>> expand_host_list(std::string_view list);

}  // namespace amxt::comm
