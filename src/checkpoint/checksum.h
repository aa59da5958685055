// XXH3, as its canonical text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace amxt::checkpoint {

uint64_t checksum64(std::span<const std::byte> data);
// 32 hex digits of XXH3-128.
std::string checksum128(std::span<const std::byte> data);
std::string checksum128(std::string_view text);

}  // namespace amxt::checkpoint
