#include "base/dtype.h"

namespace amxt {
namespace {

struct Name {
  DType dtype;
  const char* text;
};

constexpr Name kNames[] = {{DType::kF32, "F32"},  {DType::kBF16, "BF16"}, {DType::kF16, "F16"},
                           {DType::kI32, "I32"},  {DType::kI64, "I64"},   {DType::kU8, "U8"},
                           {DType::kU16, "U16"},  {DType::kU32, "U32"},   {DType::kI8, "I8"},
                           {DType::kI16, "I16"},  {DType::kU64, "U64"},   {DType::kF64, "F64"},
                           {DType::kBool, "BOOL"}};

}  // namespace

const char* dtype_name(DType dtype) {
  for (const Name& name : kNames) {
    if (name.dtype == dtype) return name.text;
  }
  return "?";
}

std::optional<DType> dtype_from_name(std::string_view text) {
  for (const Name& name : kNames) {
    if (text == name.text) return name.dtype;
  }
  return std::nullopt;
}

}  // namespace amxt
