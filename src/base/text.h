// Text for messages: names that come from files are escaped and cut, sizes get units, system errors their words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace amxt {

// 'name' in single quotes; control bytes, quotes, backslashes and invalid UTF-8 as \xNN; cut at 128 bytes with "...".
std::string quote(std::string_view name);

// 1536 -> "1.5 KiB"; exact below 1 KiB.
std::string bytes_text(uint64_t bytes);

// "1 file", "2 files".
std::string counted(int64_t count, std::string_view noun);

// "<what>: <strerror>" with a code that fits errno (ENOSPC -> kNoSpace, ENOENT -> kNotFound, ENOMEM -> kOutOfMemory, else kIo).
Error system_error(std::string_view what, int sys_errno);

// True when `text` is well-formed UTF-8 (no surrogates, no overlong forms).
bool is_utf8(std::string_view text);

}  // namespace amxt
