#include "base/text.h"

#include <fmt/format.h>

#include <cerrno>
#include <system_error>

namespace amxt {
namespace {

constexpr size_t kQuotedLimit = 128;

// Length of the well-formed UTF-8 sequence at the front of `text`, 0 when there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto follows = [&](size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (!follows(1) || !follows(2)) return 0;
    if (first == 0xE0 && byte(1) < 0xA0) return 0;  // overlong
    if (first == 0xED && byte(1) > 0x9F) return 0;  // surrogate
    return 3;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (!follows(1) || !follows(2) || !follows(3)) return 0;
    if (first == 0xF0 && byte(1) < 0x90) return 0;
    if (first == 0xF4 && byte(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

Code code_of(int sys_errno) {
  switch (sys_errno) {
    case ENOSPC:
    case EDQUOT:
      return Code::kNoSpace;
    case ENOENT:
    case ENOTDIR:
      return Code::kNotFound;
    case EEXIST:
      return Code::kExists;
    case ENOMEM:
      return Code::kOutOfMemory;
    default:
      return Code::kIo;
  }
}

}  // namespace

std::string quote(std::string_view name) {
  std::string out = "'";
  size_t i = 0;
  while (i < name.size()) {
    const size_t length = utf8_length(name.substr(i));
    const auto c = static_cast<unsigned char>(name[i]);
    std::string piece;
    if (length > 1) {
      piece = name.substr(i, length);
    } else if (length == 0 || c < 0x20 || c == 0x7F || c == '\'' || c == '\\') {
      piece = fmt::format("\\x{:02x}", c);
    } else {
      piece = name[i];
    }
    if (out.size() - 1 + piece.size() > kQuotedLimit) {
      out += "...";
      break;
    }
    out += piece;
    i += length == 0 ? 1 : length;
  }
  out += "'";
  return out;
}

std::string bytes_text(uint64_t bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return counted(static_cast<int64_t>(bytes), "byte");
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  value /= 1024;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, kUnits[unit]);
}

std::string counted(int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

Error system_error(std::string_view what, int sys_errno) {
  return Error(code_of(sys_errno),
               fmt::format("{}: {}", what, std::generic_category().message(sys_errno)), sys_errno);
}

bool is_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const size_t length = utf8_length(text.substr(i));
    if (length == 0) return false;
    i += length;
  }
  return true;
}

}  // namespace amxt
