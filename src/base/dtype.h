// Element types of tensors in files and in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace amxt {

enum class DType : int32_t {
  kF32 = 0,
  kBF16 = 1,
  kF16 = 2,
  kI32 = 3,
  kI64 = 4,
  kU8 = 5,
  kU16 = 6,
  kU32 = 7,
  kI8 = 8,
  kI16 = 9,
  kU64 = 10,
  kF64 = 11,
  kBool = 12
};

constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kU8:
    case DType::kI8:
    case DType::kBool:
      return 1;
    case DType::kBF16:
    case DType::kF16:
    case DType::kU16:
    case DType::kI16:
      return 2;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    default:
      return 8;
  }
}

// The spelling of safetensors: "F32", "BF16", ...
const char* dtype_name(DType dtype);
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace amxt
