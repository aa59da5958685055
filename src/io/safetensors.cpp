#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "base/json.h"
#include "base/text.h"

namespace amxt::io {
namespace {

constexpr uint64_t kHeaderLimit = 100'000'000;  // of the format
constexpr int64_t kLengthBytes = 8;
constexpr size_t kNameLimit = 4096;
constexpr size_t kRankLimit = 8;
constexpr int kDepthLimit = 16;
constexpr uint64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// Types of the format that have no whole number of bytes or no use in training.
constexpr const char* kUnsupported[] = {"F4",          "F6_E2M3",     "F6_E3M2",
                                        "F8_E5M2",     "F8_E4M3",     "F8_E8M0",
                                        "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"};

bool is_unsupported(std::string_view dtype) {
  return std::find(std::begin(kUnsupported), std::end(kUnsupported), dtype) !=
         std::end(kUnsupported);
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

bool has_control(std::string_view name) {
  return std::any_of(name.begin(), name.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Elements of `shape`, or nothing when the product leaves int64. Factors are taken in order, so that a
// zero behind an overflow does not hide it.
std::optional<int64_t> product(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(elements, extent, &elements)) return std::nullopt;
  }
  return elements;
}

// A position in the header that tells the parser's caller how far it has read.
class Cursor {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  Cursor(const char* at, const char** seen) : at_(at), seen_(seen) {}
  reference operator*() const { return *at_; }
  Cursor& operator++() {
    *seen_ = ++at_;
    return *this;
  }
  Cursor operator++(int) {
    Cursor old = *this;
    ++*this;
    return old;
  }
  bool operator==(const Cursor& other) const { return at_ == other.at_; }
  bool operator!=(const Cursor& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** seen_;
};

// Reads the header as it is parsed: no tree is built, so memory stays near the header's own size.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(const char* begin, std::vector<TensorEntry>* tensors,
               std::unordered_map<std::string, size_t>* by_name,
               std::map<std::string, std::string>* metadata)
      : begin_(begin), seen_(begin), tensors_(*tensors), by_name_(*by_name), metadata_(*metadata) {}

  const char** seen() { return &seen_; }
  std::optional<Error> take_error() { return std::move(error_); }

  bool null() override { return scalar("null"); }
  bool boolean(bool value) override { return scalar(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    if (in_list()) return fail_list(fmt::format("{} is negative", value));
    return scalar(fmt::format("{}", value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!in_list()) return scalar(fmt::format("{}", value));
    if (value > kMaxInt64) return fail_list(fmt::format("{} is more than 2^63 - 1", value));
    if (field_ == Field::kShape && entry_.shape.size() == kRankLimit) {
      return fail_entry(fmt::format("'shape' has more than {} dimensions", kRankLimit));
    }
    if (field_ == Field::kOffsets && offsets_.size() == 2) {
      return fail_entry("'data_offsets' has more than 2 numbers");
    }
    (field_ == Field::kShape ? entry_.shape : offsets_).push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_float(number_float_t, const string_t& text) override {
    if (in_list())
      return fail_list(fmt::format("{} is not a whole number below 2^63", quote(text)));
    return scalar(text);
  }
  bool string(string_t& value) override {
    if (skipping()) return true;
    if (place_ == Place::kMetadata) {
      metadata_.emplace(std::move(key_), std::move(value));
      return true;
    }
    if (place_ == Place::kEntry && field_ == Field::kDType) return take_dtype(value);
    return scalar(quote(value));
  }
  bool binary(binary_t&) override { return scalar("binary"); }

  bool start_object(std::size_t) override {
    if (skipping()) return deeper();
    switch (place_) {
      case Place::kOutside:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        entry_offset_ = offset() - 1;
        if (entry_.name == "__metadata__") {
          place_ = Place::kMetadata;
        } else {
          place_ = Place::kEntry;
          seen_fields_ = 0;
          extras_.clear();
          offsets_.clear();
        }
        return true;
      default:
        return scalar("an object");
    }
  }
  bool end_object() override {
    if (skipping()) return shallower();
    if (place_ == Place::kEntry) {
      if (!finish_entry()) return false;
      place_ = Place::kTop;
    } else {
      place_ = place_ == Place::kMetadata ? Place::kTop : Place::kOutside;
    }
    return true;
  }
  bool start_array(std::size_t) override {
    if (skipping()) return deeper();
    if (place_ == Place::kEntry && !in_array_ &&
        (field_ == Field::kShape || field_ == Field::kOffsets)) {
      in_array_ = true;
      return true;
    }
    if (in_list()) return fail_list("an array is not a whole number");
    return scalar("an array");
  }
  bool end_array() override {
    if (skipping()) return shallower();
    in_array_ = false;
    return true;
  }

  bool key(string_t& name) override {
    if (skipping()) return true;
    switch (place_) {
      case Place::kTop:
        return start_tensor(name);
      case Place::kMetadata:
        if (metadata_.contains(name)) {
          return fail(fmt::format("'__metadata__': duplicate key {}", quote(name)));
        }
        key_ = std::move(name);
        return true;
      default:
        return start_field(name);
    }
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    const size_t header_offset = position > 0 ? position - 1 : 0;
    return fail_at(kLengthBytes + static_cast<int64_t>(header_offset),
                   fmt::format("not valid JSON: {}", parse_reason(e.what())));
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kEntry };
  enum class Field { kDType, kShape, kOffsets, kOther };

  int64_t offset() const { return kLengthBytes + (seen_ - begin_); }

  bool fail_error(Error error) {
    if (!error_) error_.emplace(std::move(error));
    return false;
  }
  bool fail_at(int64_t offset, std::string_view message) {
    return fail_error(
        Error(Code::kFormat, fmt::format("header at offset {}: {}", offset, message)));
  }
  bool fail(std::string_view message) { return fail_at(offset(), message); }
  bool fail_entry(std::string_view message, Code code = Code::kFormat) {
    return fail_error(Error(code, fmt::format("tensor {} (entry at offset {}): {}",
                                              quote(entry_.name), entry_offset_, message)));
  }
  bool fail_list(std::string_view message) {
    const bool shape = field_ == Field::kShape;
    return fail_entry(fmt::format("'{}'[{}]: {}", shape ? "shape" : "data_offsets",
                                  shape ? entry_.shape.size() : offsets_.size(), message));
  }

  bool in_list() const { return in_array_; }

  // Inside the value of a field that the format does not know: read over, as the reference does.
  bool skipping() const { return skip_depth_ > 0; }
  bool deeper() {
    if (skip_depth_ + 2 >= kDepthLimit) {
      return fail(fmt::format("nested deeper than {} levels", kDepthLimit));
    }
    ++skip_depth_;
    return true;
  }
  bool shallower() {
    --skip_depth_;
    return true;
  }

  // A value where the format does not want it, or that of an unknown field.
  bool scalar(std::string_view text) {
    if (skipping()) return true;
    switch (place_) {
      case Place::kOutside:
        return fail(fmt::format("{} instead of an object", text));
      case Place::kTop:
        if (entry_.name == "__metadata__")
          return fail(fmt::format("'__metadata__' is {}, not an object", text));
        return fail_entry(fmt::format("{} instead of an object", text));
      case Place::kMetadata:
        return fail(
            fmt::format("'__metadata__': value of {} is {}, not a string", quote(key_), text));
      case Place::kEntry:
        break;
    }
    if (in_list()) return fail_list(fmt::format("{} is not a whole number", text));
    switch (field_) {
      case Field::kDType:
        return fail_entry(fmt::format("'dtype' is {}, not a string", text));
      case Field::kShape:
        return fail_entry(fmt::format("'shape' is {}, not an array", text));
      case Field::kOffsets:
        return fail_entry(fmt::format("'data_offsets' is {}, not an array", text));
      case Field::kOther:
        if (text == "an object" || text == "an array") return deeper();
        return true;
    }
    return true;
  }

  bool start_tensor(std::string& name) {
    entry_ = {};
    entry_.name = std::move(name);
    entry_offset_ = offset();
    if (entry_.name == "__metadata__") {
      if (std::exchange(seen_metadata_, true)) return fail("duplicate key '__metadata__'");
      return true;
    }
    if (entry_.name.empty()) return fail_entry("the name is empty");
    if (entry_.name.size() > kNameLimit) {
      return fail_entry(
          fmt::format("the name has {} bytes, the limit is {}", entry_.name.size(), kNameLimit));
    }
    if (has_control(entry_.name)) return fail_entry("the name has a control character");
    if (by_name_.contains(entry_.name)) return fail_entry("duplicate tensor name");
    return true;
  }

  bool start_field(std::string& name) {
    const bool known = name == "dtype" || name == "shape" || name == "data_offsets";
    field_ = name == "dtype"          ? Field::kDType
             : name == "shape"        ? Field::kShape
             : name == "data_offsets" ? Field::kOffsets
                                      : Field::kOther;
    const unsigned bit = 1u << static_cast<unsigned>(field_);
    const bool repeated = known ? (seen_fields_ & bit) != 0
                                : std::find(extras_.begin(), extras_.end(), name) != extras_.end();
    if (repeated) return fail_entry(fmt::format("duplicate key {}", quote(name)));
    seen_fields_ |= bit;
    if (!known) {
      if (extras_.size() == 64) return fail_entry("more than 64 unknown keys");
      extras_.push_back(std::move(name));
    }
    return true;
  }

  bool take_dtype(const std::string& text) {
    if (const auto dtype = dtype_from_name(text)) {
      entry_.dtype = *dtype;
      return true;
    }
    if (is_unsupported(text)) {
      return fail_entry(fmt::format("dtype {} is not supported", text), Code::kUnsupported);
    }
    return fail_entry(fmt::format("unknown dtype {}", quote(text)));
  }

  bool has(Field field) const { return (seen_fields_ & (1u << static_cast<unsigned>(field))) != 0; }

  // Offsets stay relative to the data part; the caller knows where that begins.
  bool finish_entry() {
    if (!has(Field::kDType)) return fail_entry("'dtype' is missing");
    if (!has(Field::kShape)) return fail_entry("'shape' is missing");
    if (!has(Field::kOffsets)) return fail_entry("'data_offsets' is missing");
    if (offsets_.size() != 2) {
      return fail_entry(fmt::format("'data_offsets' has {} numbers instead of 2", offsets_.size()));
    }
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    if (entry_.begin > entry_.end) {
      return fail_entry(
          fmt::format("data_offsets [{}, {}] end before they begin", entry_.begin, entry_.end));
    }
    const auto elements = product(entry_.shape);
    if (!elements) {
      return fail_entry(
          fmt::format("the elements of shape {} overflow 64 bits", shape_text(entry_.shape)));
    }
    int64_t bytes = 0;
    if (__builtin_mul_overflow(*elements, dtype_bytes(entry_.dtype), &bytes)) {
      return fail_entry(fmt::format("the bytes of shape {} in {} overflow 64 bits",
                                    shape_text(entry_.shape), dtype_name(entry_.dtype)));
    }
    if (bytes != entry_.end - entry_.begin) {
      return fail_entry(fmt::format("data_offsets [{}, {}] hold {} bytes, shape {} in {} needs {}",
                                    entry_.begin, entry_.end, entry_.end - entry_.begin,
                                    shape_text(entry_.shape), dtype_name(entry_.dtype), bytes));
    }
    by_name_.emplace(entry_.name, tensors_.size());
    tensors_.push_back(std::move(entry_));
    return true;
  }

  const char* begin_;
  const char* seen_;
  std::vector<TensorEntry>& tensors_;
  std::unordered_map<std::string, size_t>& by_name_;
  std::map<std::string, std::string>& metadata_;
  std::optional<Error> error_;

  Place place_ = Place::kOutside;
  Field field_ = Field::kOther;
  bool in_array_ = false;
  bool seen_metadata_ = false;
  int skip_depth_ = 0;
  unsigned seen_fields_ = 0;
  int64_t entry_offset_ = 0;
  TensorEntry entry_;
  std::vector<int64_t> offsets_;
  std::vector<std::string> extras_;
  std::string key_;
};

Error file_error(const File& file, Code code, std::string_view message) {
  return Error(code, fmt::format("{}: {}", quote(file.path()), message));
}

// Bytes of the header, or why there can't be one. Nothing is allocated before it is known to exist.
Result<int64_t> header_length(const File& file, int64_t file_bytes) {
  if (file_bytes == 0) return file_error(file, Code::kCorrupt, "the file is empty");
  if (file_bytes < kLengthBytes) {
    return file_error(
        file, Code::kCorrupt,
        fmt::format("{} bytes at offset 0 are too few for the length of a header", file_bytes));
  }
  unsigned char raw[kLengthBytes];
  AMXT_TRY(file.read_at(0, std::as_writable_bytes(std::span(raw))));
  uint64_t length = 0;
  for (size_t i = 0; i < sizeof raw; ++i) length |= static_cast<uint64_t>(raw[i]) << (8 * i);
  if (length == 0) return file_error(file, Code::kFormat, "the header length at offset 0 is 0");
  if (length > kHeaderLimit) {
    return file_error(
        file, Code::kFormat,
        fmt::format("the header length at offset 0 is {}, the limit is {}", length, kHeaderLimit));
  }
  if (length > static_cast<uint64_t>(file_bytes - kLengthBytes)) {
    return file_error(
        file, Code::kCorrupt,
        fmt::format("the header length at offset 0 is {}, but the file has {} bytes behind it",
                    length, file_bytes - kLengthBytes));
  }
  return static_cast<int64_t>(length);
}

Status check_first_byte(const File& file, std::string_view header) {
  const auto first = std::find_if_not(header.begin(), header.end(), is_space);
  const int64_t offset = kLengthBytes + (first - header.begin());
  if (first == header.end())
    return file_error(file, Code::kFormat, "header at offset 8: only white space");
  if (*first == '{') return {};
  return file_error(file, Code::kFormat,
                    fmt::format("header at offset {}: begins with {} instead of '{{'", offset,
                                quote(std::string_view(&*first, 1))));
}

// The parser takes a NUL for the end of its input, so that bytes behind it would go unread.
Status check_text(const File& file, std::string_view header) {
  if (const size_t at = header.find('\0'); at != std::string_view::npos) {
    return file_error(
        file, Code::kFormat,
        fmt::format("header at offset {}: a NUL byte", kLengthBytes + static_cast<int64_t>(at)));
  }
  if (!is_utf8(header))
    return file_error(file, Code::kFormat, "header at offset 8: not valid UTF-8");
  return check_first_byte(file, header);
}

// The data part is covered without hole, overlap or rest. Turns offsets into those of the file.
Status check_layout(const File& file, int64_t data_begin, int64_t file_bytes,
                    std::vector<TensorEntry>& tensors) {
  const int64_t data_bytes = file_bytes - data_begin;
  int64_t expected = 0;
  const TensorEntry* previous = nullptr;
  for (TensorEntry& tensor : tensors) {
    const auto fail = [&](Code code, std::string_view message) {
      return file_error(file, code, fmt::format("tensor {}: {}", quote(tensor.name), message));
    };
    if (tensor.end > data_bytes) {
      return fail(
          Code::kCorrupt,
          fmt::format("data_offsets [{}, {}] reach {} beyond the end of the file at offset {}",
                      tensor.begin, tensor.end, counted(tensor.end - data_bytes, "byte"),
                      file_bytes));
    }
    if (tensor.begin > expected) {
      return fail(Code::kFormat,
                  fmt::format("begins at offset {}, a hole of {} behind {}",
                              data_begin + tensor.begin, counted(tensor.begin - expected, "byte"),
                              previous ? "tensor " + quote(previous->name) : "the header"));
    }
    if (tensor.begin < expected) {
      return fail(
          Code::kFormat,
          fmt::format("begins at offset {}, inside tensor {}, which ends at offset {}",
                      data_begin + tensor.begin, quote(previous->name), data_begin + expected));
    }
    expected = tensor.end;
    tensor.begin += data_begin;
    tensor.end += data_begin;
    previous = &tensor;
  }
  if (expected != data_bytes) {
    return file_error(file, Code::kFormat,
                      fmt::format("{} bytes at offset {} belong to no tensor",
                                  data_bytes - expected, data_begin + expected));
  }
  return {};
}

// The file's own name stands in front of the cause already; the tensor goes behind it.
Error name_tensor(Error error, const File& file, const TensorEntry& tensor) {
  const std::string prefix = quote(file.path()) + ": ";
  std::string message = error.message();
  if (message.starts_with(prefix)) message.erase(0, prefix.size());
  return Error(error.code(), fmt::format("{}tensor {}: {}", prefix, quote(tensor.name), message),
               error.sys_errno());
}

Status check_range(const File& file, const TensorEntry& tensor, int64_t offset, size_t bytes) {
  const bool inside = offset >= 0 && offset <= tensor.bytes() &&
                      bytes <= static_cast<uint64_t>(tensor.bytes() - offset);
  if (inside) return {};
  return file_error(file, Code::kInvalidArgument,
                    fmt::format("tensor {}: {} bytes at offset {} are not within its {}",
                                quote(tensor.name), bytes, offset, tensor.bytes()));
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  AMXT_ASSIGN(File file, File::open_read(path));
  return parse(std::move(file));
}

Result<SafetensorsFile> SafetensorsFile::open_beneath(const std::string& directory,
                                                      const std::string& name) {
  AMXT_ASSIGN(File file, File::open_read_beneath(directory, name));
  return parse(std::move(file));
}

Result<SafetensorsFile> SafetensorsFile::parse(File file) {
  file.no_readahead();
  SafetensorsFile result;
  AMXT_ASSIGN(result.file_bytes_, file.size());
  AMXT_ASSIGN(const int64_t length, header_length(file, result.file_bytes_));
  {
    std::string header(static_cast<size_t>(length), '\0');
    AMXT_TRY(file.read_at(kLengthBytes, std::as_writable_bytes(std::span(header))));
    AMXT_TRY(check_text(file, header));

    const char* begin = header.data();
    HeaderReader reader(begin, &result.tensors_, &result.by_name_, &result.metadata_);
    bool parsed = false;
    try {
      parsed = Json::sax_parse(Cursor(begin, reader.seen()),
                               Cursor(begin + header.size(), reader.seen()), &reader);
    } catch (const std::exception& e) {
      return file_error(file, Code::kFormat,
                        fmt::format("header at offset 8: {}", quote(e.what())));
    }
    if (auto error = reader.take_error()) return std::move(*error).in(quote(file.path()));
    if (!parsed) return file_error(file, Code::kFormat, "header at offset 8: not valid JSON");
  }
  // An empty tensor shares its offset with the next one and comes first.
  std::sort(result.tensors_.begin(), result.tensors_.end(),
            [](const TensorEntry& a, const TensorEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  for (size_t i = 0; i < result.tensors_.size(); ++i) result.by_name_[result.tensors_[i].name] = i;
  AMXT_TRY(check_layout(file, kLengthBytes + length, result.file_bytes_, result.tensors_));
  result.file_ = std::move(file);
  return result;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

Result<const TensorEntry*> SafetensorsFile::require(std::string_view name) const {
  if (const TensorEntry* tensor = find(name)) return tensor;
  return file_error(file_, Code::kFormat, fmt::format("tensor {} is missing", quote(name)));
}

Status SafetensorsFile::read(const TensorEntry& tensor, int64_t offset,
                             std::span<std::byte> data) const {
  AMXT_TRY(check_range(file_, tensor, offset, data.size()));
  if (auto status = file_.read_at(tensor.begin + offset, data); !status) {
    return name_tensor(std::move(status).error(), file_, tensor);
  }
  return {};
}

namespace {

struct PlannedHeader {
  std::string text;  // padded to whole 8 bytes
  std::vector<TensorEntry> tensors;
  std::unordered_map<std::string, size_t> by_name;
  int64_t data_bytes = 0;
};

Status plan_tensor(const TensorPlan& tensor, PlannedHeader& header, Json& json) {
  const auto fail = [&](std::string_view message) {
    return Error(Code::kInvalidArgument, fmt::format("tensor {}: {}", quote(tensor.name), message));
  };
  const bool bad_name = tensor.name.empty() || tensor.name == "__metadata__" ||
                        tensor.name.size() > kNameLimit || has_control(tensor.name) ||
                        !is_utf8(tensor.name);
  if (bad_name) return fail("not a name that a file may hold");
  if (tensor.shape.size() > kRankLimit)
    return fail(fmt::format("more than {} dimensions", kRankLimit));
  if (std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t n) { return n < 0; })) {
    return fail(fmt::format("shape {} has a negative extent", shape_text(tensor.shape)));
  }
  const auto elements = product(tensor.shape);
  int64_t bytes = 0;
  int64_t end = 0;
  if (!elements || __builtin_mul_overflow(*elements, dtype_bytes(tensor.dtype), &bytes) ||
      __builtin_add_overflow(header.data_bytes, bytes, &end)) {
    return fail(fmt::format("shape {} overflows 64 bits", shape_text(tensor.shape)));
  }
  if (!header.by_name.emplace(tensor.name, header.tensors.size()).second)
    return fail("named twice");
  header.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, header.data_bytes, end});
  auto& members = json.get_ref<Json::object_t&>();
  // Names were proven unique: the ordered map's own insertion would search all of them.
  static_cast<std::vector<std::pair<const std::string, Json>>&>(members).emplace_back(
      tensor.name, Json{{"dtype", dtype_name(tensor.dtype)},
                        {"shape", tensor.shape},
                        {"data_offsets", {header.data_bytes, end}}});
  header.data_bytes = end;
  return {};
}

Result<PlannedHeader> plan_header(const std::vector<TensorPlan>& tensors,
                                  const std::map<std::string, std::string>& metadata) {
  PlannedHeader header;
  Json json = Json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  for (const TensorPlan& tensor : tensors) AMXT_TRY(plan_tensor(tensor, header, json));
  try {
    header.text = json.dump();
  } catch (const std::exception& e) {
    return Error(Code::kInvalidArgument, fmt::format("metadata: {}", quote(e.what())));
  }
  header.text.append((8 - header.text.size() % 8) % 8, ' ');
  if (header.text.size() > kHeaderLimit) {
    return Error(Code::kLimit, fmt::format("a header of {} bytes, the limit is {}",
                                           header.text.size(), kHeaderLimit));
  }
  return header;
}

}  // namespace

// All of a writer but its file.
Result<SafetensorsWriter> SafetensorsWriter::plan(
    const std::string& path, std::vector<TensorPlan> tensors,
    const std::map<std::string, std::string>& metadata, std::string* text) {
  auto header = plan_header(tensors, metadata);
  if (!header) return std::move(header).error().in(quote(path));
  SafetensorsWriter writer;
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(header->text.size());
  if (__builtin_add_overflow(data_begin, header->data_bytes, &writer.file_bytes_)) {
    return Error(Code::kLimit, fmt::format("{}: the file would exceed 2^63 bytes", quote(path)));
  }
  writer.tensors_ = std::move(header->tensors);
  writer.by_name_ = std::move(header->by_name);
  for (TensorEntry& tensor : writer.tensors_) {
    tensor.begin += data_begin;
    tensor.end += data_begin;
  }
  writer.written_ = std::make_unique<std::atomic<int64_t>[]>(writer.tensors_.size());
  writer.header_bytes_ = header->text.size();
  *text = std::move(header->text);
  return writer;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path,
                                                    std::vector<TensorPlan> tensors,
                                                    std::map<std::string, std::string> metadata) {
  std::string header;
  AMXT_ASSIGN(SafetensorsWriter writer, plan(path, std::move(tensors), metadata, &header));
  AMXT_ASSIGN(writer.file_, File::create(path));
  AMXT_TRY(writer.file_.reserve(writer.file_bytes_));
  // The length stays 0, which no reader takes for a header, until every byte has been given.
  AMXT_TRY(writer.file_.write_at(kLengthBytes, std::as_bytes(std::span(header))));
  return writer;
}

Result<SafetensorsWriter> SafetensorsWriter::open(const std::string& path,
                                                  std::vector<TensorPlan> tensors,
                                                  std::map<std::string, std::string> metadata) {
  std::string header;
  AMXT_ASSIGN(SafetensorsWriter writer, plan(path, std::move(tensors), metadata, &header));
  AMXT_ASSIGN(writer.file_, File::open_write(path));
  AMXT_ASSIGN(const int64_t bytes, writer.file_.size());
  if (bytes != writer.file_bytes_) {
    return file_error(writer.file_, Code::kMismatch,
                      fmt::format("{} bytes, {} are planned", bytes, writer.file_bytes_));
  }
  return writer;
}

const TensorEntry* SafetensorsWriter::find(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

Status SafetensorsWriter::write(const TensorEntry& tensor, int64_t offset,
                                std::span<const std::byte> data) {
  AMXT_TRY(check_range(file_, tensor, offset, data.size()));
  if (auto status = file_.write_at(tensor.begin + offset, data); !status) {
    return name_tensor(std::move(status).error(), file_, tensor);
  }
  const auto found = by_name_.find(tensor.name);
  if (found == by_name_.end()) {
    return file_error(file_, Code::kInvalidArgument,
                      fmt::format("no tensor {}", quote(tensor.name)));
  }
  written_[found->second].fetch_add(static_cast<int64_t>(data.size()), std::memory_order_relaxed);
  return {};
}

Status SafetensorsWriter::finish() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const int64_t written = written_[i].load(std::memory_order_relaxed);
    if (written != tensors_[i].bytes()) {
      return file_error(file_, Code::kInvalidState,
                        fmt::format("tensor {}: {} of {} bytes were written",
                                    quote(tensors_[i].name), written, tensors_[i].bytes()));
    }
  }
  return finish_shared();
}

int64_t SafetensorsWriter::bytes_given() const {
  int64_t bytes = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) bytes += written_[i].load(std::memory_order_relaxed);
  return bytes;
}

Status SafetensorsWriter::finish_shared() {
  unsigned char raw[kLengthBytes];
  for (size_t i = 0; i < sizeof raw; ++i)
    raw[i] = static_cast<unsigned char>(header_bytes_ >> (8 * i));
  AMXT_TRY(file_.write_at(0, std::as_bytes(std::span(raw))));
  AMXT_TRY(file_.sync());
  file_.close();
  return {};
}

}  // namespace amxt::io
