#include "checkpoint/checksum.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace amxt::checkpoint {

uint64_t checksum64(std::span<const std::byte> data) {
  return XXH3_64bits(data.data(), data.size());
}

std::string checksum128(std::span<const std::byte> data) {
  const XXH128_hash_t hash = XXH3_128bits(data.data(), data.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string checksum128(std::string_view text) {
  return checksum128(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace amxt::checkpoint
