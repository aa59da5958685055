// The border: what every C function does before and after its body.
#pragma once

#include <amxtrain.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace amxt::capi {

// Writes the error, its message cut to one line that fits; `err` may be null.
amxt_status report(const Error& error, amxt_error* err) noexcept;
amxt_status report(Code code, std::string_view message, amxt_error* err) noexcept;

// Runs a body that gives a Status. No exception leaves.
template <typename Body>
amxt_status guarded(amxt_error* err, Body&& body) noexcept {
  // An uninitialised error has no place for a message.
  if (err != nullptr && err->struct_size != sizeof(amxt_error)) return AMXT_E_INVALID_ARGUMENT;
  try {
    const Status status = body();
    return status ? AMXT_OK : report(status.error(), err);
  } catch (const std::bad_alloc&) {
    return report(Code::kOutOfMemory, "out of memory", err);
  } catch (const std::exception& exception) {
    return report(Code::kInternal, exception.what(), err);
  } catch (...) {
    return report(Code::kInternal, "unknown exception", err);
  }
}

// kInvalidArgument "`name` is NULL".
Status require(const void* pointer, std::string_view name);

// kInvalidArgument when the struct was not set up, or by a header of another version.
Status check_size(uint32_t given, size_t known, std::string_view type);

// The caller's struct, or `defaults` for null.
template <typename T>
Result<T> read_struct(const T* given, const T& defaults, std::string_view type) {
  if (given == nullptr) return defaults;
  AMXT_TRY(check_size(given->struct_size, sizeof(T), type));
  return *given;
}

// Sets a caller's struct up: no byte beyond the size that the caller knows.
template <typename T>
void init_struct(T* out, uint32_t struct_size, T initial) {
  if (out == nullptr) return;
  initial.struct_size = struct_size;
  std::memcpy(static_cast<void*>(out), &initial, std::min<size_t>(struct_size, sizeof(T)));
}

// A copy for the caller, who ends it with amxt_string_destroy().
Result<char*> copy_text(std::string_view text);

// Fields that may be unset.
inline std::optional<int64_t> given(int64_t value) {
  return value == AMXT_UNSET_I64 ? std::nullopt : std::optional(value);
}
inline std::optional<int32_t> given(int32_t value) {
  return value == AMXT_UNSET_I32 ? std::nullopt : std::optional(value);
}
inline std::optional<double> given(double value) {
  return value == AMXT_UNSET_F64 ? std::nullopt : std::optional(value);
}
// A field of 0 and 1; kInvalidArgument for another value.
Result<std::optional<bool>> given_flag(int32_t value, std::string_view name);
// A field with values 0 to last; kInvalidArgument for another one.
Result<std::optional<int32_t>> given_choice(int32_t value, int32_t last, std::string_view name);
// A field of `least` or more.
Result<std::optional<int64_t>> given_count(int64_t value, int64_t least, std::string_view name);

inline std::string text_or(const char* text, const char* other) {
  return text != nullptr ? text : other;
}

}  // namespace amxt::capi
