#include "io/npy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "base/text.h"

namespace amxt::io {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

Error bad(std::string message) { return Error(Code::kFormat, std::move(message)); }

// Reads the Python literal of a header: a dict of strings, booleans and tuples of whole numbers.
class Literal {
 public:
  explicit Literal(std::string_view text) : text_(text) {}

  // The next character that is not a blank, 0 at the end.
  char peek() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    peek();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  std::optional<std::string_view> string() {
    const char delimiter = peek();
    if (delimiter != '\'' && delimiter != '"') return {};
    const size_t end = text_.find(delimiter, at_ + 1);
    if (end == std::string_view::npos) return {};
    const std::string_view value = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return value;
  }
  // A whole number of 0 or more; Python 2 wrote a trailing L.
  std::optional<int64_t> number() {
    peek();
    const size_t begin = at_;
    int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[at_] - '0', &value)) {
        return {};
      }
      ++at_;
    }
    if (at_ == begin) return {};
    if (at_ < text_.size() && text_[at_] == 'L') ++at_;
    return value;
  }
  std::string_view rest() const { return text_.substr(at_); }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

Status parse_type(std::string_view descr, NpyHeader& header) {
  const auto unsupported = [&](const char* why) {
    return Error(Code::kUnsupported,
                 fmt::format("element type {}: {}, token ids are integers", quote(descr), why));
  };
  std::string_view type = descr;
  const char order = type.empty() ? '\0' : type[0];
  if (order == '<' || order == '>' || order == '|' || order == '=') type.remove_prefix(1);
  header.big_endian = order == '>';
  if (type.empty()) return unsupported("unknown");
  switch (type[0]) {
    case 'i':
    case 'u':
      break;
    case 'f':
      return unsupported("floating point");
    case 'b':
      return unsupported("boolean");
    case 'c':
      return unsupported("complex");
    case 'O':
      return unsupported("Python objects");
    case 'S':
    case 'U':
    case 'a':
      return unsupported("text");
    default:
      return unsupported("unknown");
  }
  header.is_signed = type[0] == 'i';
  const std::string_view size = type.substr(1);
  if (size != "1" && size != "2" && size != "4" && size != "8") return unsupported("unknown");
  header.item_bytes = size[0] - '0';
  return {};
}

Status parse_shape(Literal& literal, NpyHeader& header) {
  if (!literal.take('(')) return bad("header: the shape is not a tuple");
  while (!literal.take(')')) {
    const auto size = literal.number();
    if (!size) return bad("header: the shape has something that is not a size");
    header.shape.push_back(*size);
    if (header.shape.size() > 32) return bad("header: more than 32 dimensions");
    if (!literal.take(',')) {
      if (!literal.take(')')) return bad("header: the shape does not end");
      break;
    }
  }
  return {};
}

Status parse_dictionary(std::string_view text, NpyHeader& header) {
  Literal literal(text);
  if (!literal.take('{')) return bad("header: not a dictionary");
  bool has_descr = false;
  bool has_order = false;
  bool has_shape = false;
  while (!literal.take('}')) {
    const auto key = literal.string();
    if (!key || !literal.take(':')) return bad("header: not a dictionary of names");
    if (*key == "descr" && !has_descr) {
      has_descr = true;
      if (literal.peek() == '[') {
        return Error(Code::kUnsupported,
                     "element type: a record of fields, token ids are integers");
      }
      const auto descr = literal.string();
      if (!descr) return bad("header: 'descr' is not a text");
      AMXT_TRY(parse_type(*descr, header));
    } else if (*key == "fortran_order" && !has_order) {
      has_order = true;
      if (literal.take_word("True")) {
        return Error(Code::kUnsupported,
                     "fortran_order: columns first; numpy.ascontiguousarray() turns it round");
      }
      if (!literal.take_word("False")) return bad("header: 'fortran_order' is not True or False");
    } else if (*key == "shape" && !has_shape) {
      has_shape = true;
      AMXT_TRY(parse_shape(literal, header));
    } else {
      return bad(fmt::format("header: key {} is unknown or there twice", quote(*key)));
    }
    if (!literal.take(',')) {
      if (!literal.take('}')) return bad("header: the dictionary does not end");
      break;
    }
  }
  if (!has_descr) return bad("header: key 'descr' is missing");
  if (!has_order) return bad("header: key 'fortran_order' is missing");
  if (!has_shape) return bad("header: key 'shape' is missing");
  if (literal.peek() != '\0') {
    return bad(fmt::format("header: {} behind the dictionary", quote(literal.rest())));
  }
  return {};
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("({}{})", fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
}

Status check_size(NpyHeader& header, int64_t file_bytes) {
  if (header.shape.empty() || header.shape.size() > 2) {
    return Error(
        Code::kUnsupported,
        fmt::format("shape {}: {} dimensions, not one (a stream) or two (a document a row)",
                    shape_text(header.shape), header.shape.size()));
  }
  int64_t items = 1;
  int64_t bytes = header.item_bytes;
  for (const int64_t size : header.shape) {
    // Zero first, so that (0, 2^62) is empty and not too large.
    if (__builtin_mul_overflow(items, size, &items)) {
      return bad(fmt::format("shape {}: too large", shape_text(header.shape)));
    }
  }
  if (__builtin_mul_overflow(items, bytes, &bytes)) {
    return bad(fmt::format("shape {}: too large", shape_text(header.shape)));
  }
  header.items = items;
  const int64_t present = file_bytes - header.data_begin;
  if (present != bytes) {
    return Error(Code::kCorrupt,
                 fmt::format("shape {} of {}-byte integers needs {} bytes behind the header, there "
                             "are {}",
                             shape_text(header.shape), header.item_bytes, bytes, present));
  }
  return {};
}

}  // namespace

Result<NpyHeader> parse_npy_header(std::span<const std::byte> head, int64_t file_bytes) {
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  const auto byte = [&](size_t at) { return static_cast<uint32_t>(head[at]); };
  if (!text.starts_with(kMagic)) return bad("not an .npy file: it does not begin with \\x93NUMPY");
  if (head.size() < 10) return Error(Code::kCorrupt, "ends within its first 10 bytes");
  const uint32_t version = byte(6);
  if (version < 1 || version > 3) {
    return Error(Code::kUnsupported,
                 fmt::format(".npy version {}.{}: not one of 1, 2, 3", version, byte(7)));
  }
  uint64_t length = byte(8) | byte(9) << 8;
  size_t begin = 10;
  if (version > 1) {
    if (head.size() < 12) return Error(Code::kCorrupt, "ends within its first 12 bytes");
    length |= static_cast<uint64_t>(byte(10)) << 16 | static_cast<uint64_t>(byte(11)) << 24;
    begin = 12;
  }
  if (length > static_cast<uint64_t>(kNpyHeadLimit) - 12) {
    return bad(fmt::format("header of {} bytes: more than the {} that it may have", length,
                           kNpyHeadLimit - 12));
  }
  if (head.size() - begin < length) {
    return Error(Code::kCorrupt,
                 fmt::format("header of {} bytes: the file ends {} bytes before it does", length,
                             length - (head.size() - begin)));
  }
  NpyHeader header;
  header.data_begin = static_cast<int64_t>(begin + length);
  AMXT_TRY(parse_dictionary(text.substr(begin, length), header));
  AMXT_TRY(check_size(header, file_bytes));
  return header;
}

Result<NpyHeader> read_npy_header(const File& file) {
  AMXT_ASSIGN(const int64_t bytes, file.size());
  std::vector<std::byte> head(static_cast<size_t>(std::min(bytes, kNpyHeadLimit)));
  AMXT_TRY(file.read_at(0, head));
  Result<NpyHeader> header = parse_npy_header(head, bytes);
  if (!header) return std::move(header).error().in(quote(file.path()));
  return header;
}

}  // namespace amxt::io
