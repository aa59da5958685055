// Any text as an index: refused in one line, or names that stay in their directory.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "io/index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto index = amxt::io::parse_index(text, "model.safetensors.index.json");
  if (!index) {
    if (index.error().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  for (const std::string& file : index->files) {
    const bool stays = file.find('/') == std::string::npos && file.front() != '.';
    if (!stays || !file.ends_with(".safetensors")) std::abort();
  }
  for (const auto& [tensor, file] : index->weight_map) {
    if (file >= index->files.size()) std::abort();
  }
  for (size_t i = 0; i < index->files.size(); ++i) {
    if (index->first_key(i).empty()) std::abort();
  }
  return 0;
}
