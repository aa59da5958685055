// npy: the header of NumPy's array files, versions 1 to 3, for arrays of integers.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace amxt::io {

struct NpyHeader {
  int item_bytes = 0;  // 1, 2, 4 or 8
  bool is_signed = false;
  bool big_endian = false;
  std::vector<int64_t> shape;  // one or two dimensions
  int64_t data_begin = 0;      // offset in the file
  int64_t items = 0;
};

// Reads and checks the header: integers only, rows first (no Fortran order), one or two dimensions,
// and exactly as many bytes behind it as the shape asks for. Each error names the file.
Result<NpyHeader> read_npy_header(const File& file);

// The same on a file's first bytes, without the name; `file_bytes` is the size of the whole file.
Result<NpyHeader> parse_npy_header(std::span<const std::byte> head, int64_t file_bytes);

// Bytes of a file that parse_npy_header() may need.
inline constexpr int64_t kNpyHeadLimit = 64 * 1024 + 12;

}  // namespace amxt::io
