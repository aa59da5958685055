// Headers of .npy files: any bytes give a header whose numbers agree with the size of the file, or an error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "io/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file_bytes = static_cast<int64_t>(size);
  const auto header = amxt::io::parse_npy_header(bytes, file_bytes);
  if (!header) {
    if (header.error().message().find('\n') != std::string::npos) abort();
    return 0;
  }
  const auto& h = *header;
  if (h.items < 0 || h.data_begin < 10 || h.data_begin > file_bytes) abort();
  if (h.item_bytes != 1 && h.item_bytes != 2 && h.item_bytes != 4 && h.item_bytes != 8) abort();
  if (h.data_begin + h.items * h.item_bytes != file_bytes) abort();
  if (h.shape.empty() || h.shape.size() > 2) abort();
  int64_t items = 1;
  for (const int64_t extent : h.shape) items *= extent;
  if (items != h.items) abort();
  return 0;
}
