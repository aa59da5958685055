// A name that nobody else has chosen.
#pragma once

#include <string>

namespace amxt::checkpoint {

// What begins so in a directory of outputs was never finished; it is removed at the start of a job.
inline constexpr const char* kTemporaryPrefix = ".tmp-";

std::string make_nonce();  // 16 hex digits

}  // namespace amxt::checkpoint
