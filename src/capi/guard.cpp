#include "capi/guard.h"

#include <fmt/format.h>

#include <cstdlib>

namespace amxt::capi {

namespace {

// Whole UTF-8 sequences only: a byte 10xxxxxx at the cut belongs to the one before.
size_t cut(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text.size();
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return limit;
}

void write_error(Code code, std::string_view message, int sys_errno, int32_t rank,
                 amxt_error* err) {
  if (err == nullptr) return;
  err->code = static_cast<int32_t>(code);
  err->sys_errno = sys_errno;
  err->rank = rank;
  const size_t size = cut(message, sizeof(err->message) - 1);
  std::memset(err->message, 0, sizeof(err->message));
  std::copy_n(message.data(), size, err->message);
  std::replace(err->message, err->message + size, '\n', ' ');
}

}  // namespace

amxt_status report(const Error& error, amxt_error* err) noexcept {
  write_error(error.code(), error.message(), error.sys_errno(), error.rank(), err);
  return static_cast<amxt_status>(error.code());
}

amxt_status report(Code code, std::string_view message, amxt_error* err) noexcept {
  write_error(code, message, 0, -1, err);
  return static_cast<amxt_status>(code);
}

Status require(const void* pointer, std::string_view name) {
  if (pointer != nullptr) return {};
  return Error(Code::kInvalidArgument, fmt::format("{} is NULL", name));
}

Status check_size(uint32_t given, size_t known, std::span<const size_t> older,
                  std::string_view type) {
  if (given == known || std::ranges::find(older, given) != older.end()) return {};
  if (given < known) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("{}: struct_size is {}, not {}: it was not set up by its INIT macro or "
                    "init function",
                    type, given, known));
  }
  return Error(
      Code::kInvalidArgument,
      fmt::format("{}: struct_size is {}, this library ({}) knows {}: the caller was built "
                  "with a newer header",
                  type, given, amxt_version_string(), known));
}

Result<char*> copy_text(std::string_view text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) {
    return Error(Code::kOutOfMemory, fmt::format("{} bytes for a text", text.size() + 1));
  }
  std::copy(text.begin(), text.end(), copy);
  copy[text.size()] = '\0';
  return copy;
}

Result<std::optional<bool>> given_flag(int32_t value, std::string_view name) {
  if (value == AMXT_UNSET_I32) return std::optional<bool>();
  if (value != 0 && value != 1) {
    return Error(Code::kInvalidArgument, fmt::format("{} is {}, not 0 or 1", name, value));
  }
  return std::optional(value == 1);
}

Result<std::optional<int32_t>> given_choice(int32_t value, int32_t last, std::string_view name) {
  if (value == AMXT_UNSET_I32) return std::optional<int32_t>();
  if (value < 0 || value > last) {
    return Error(Code::kInvalidArgument, fmt::format("{} is {}, not 0 to {}", name, value, last));
  }
  return std::optional(value);
}

Result<std::optional<int64_t>> given_count(int64_t value, int64_t least, std::string_view name) {
  if (value == AMXT_UNSET_I64) return std::optional<int64_t>();
  if (value < least) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{} is {}, not {} or more", name, value, least));
  }
  return std::optional(value);
}

}  // namespace amxt::capi

extern "C" void amxt_string_destroy(char* string) { std::free(string); }
