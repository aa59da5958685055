// The border: what every C function does before and after its body.
#pragma once

#include <amxtrain.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <span>
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

// Sizes that a struct had in headers before this one, the oldest first: a caller that was built with
// one of those still gives them. Who appends fields to a struct adds the size it had.
template <typename T>
inline constexpr std::array<size_t, 0> kOlderSizes{};
template <>
inline constexpr std::array kOlderSizes<amxt_group_options>{
    offsetof(amxt_group_options, allow_unauthenticated_data)};
template <>
inline constexpr std::array kOlderSizes<amxt_trainer_options>{
    offsetof(amxt_trainer_options, prefetch_parameters)};
template <>
inline constexpr std::array kOlderSizes<amxt_run_options>{offsetof(amxt_run_options, profile_path)};
template <>
inline constexpr std::array kOlderSizes<amxt_step_metrics>{offsetof(amxt_step_metrics, wire_bytes)};

Status check_size(uint32_t given, size_t known, std::span<const size_t> older,
                  std::string_view type);

// kInvalidArgument when the struct was not set up, or by a newer header.
template <typename T>
Status check_struct(const T& given, std::string_view type) {
  return check_size(given.struct_size, sizeof(T), kOlderSizes<T>, type);
}

// The caller's struct, or `defaults` for null and for fields that the caller's header lacks.
template <typename T>
Result<T> read_struct(const T* given, const T& defaults, std::string_view type) {
  if (given == nullptr) return defaults;
  AMXT_TRY(check_struct(*given, type));
  T read = defaults;
  std::memcpy(&read, given, given->struct_size);
  return read;
}

// Gives the caller the fields that his header knows; `out` was checked by check_struct().
template <typename T>
void write_struct(T* out, T value) {
  value.struct_size = out->struct_size;
  std::memcpy(out, &value, value.struct_size);
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
