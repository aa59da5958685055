// The idea: three kinds of files differ in where their token ids lie and in what cuts them into
// documents. `Elements` says the first; a class for each way of cutting does the second:
//
//     TensorFile   document_offsets of a safetensors file, read where they are needed
//     RowsFile     a document is a row of a two-dimensional array
//     StreamFile   a document ends with a separator; every n-th start is kept, the rest found again
#include "io/token_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/dtype.h"
#include "base/file.h"
#include "base/text.h"
#include "io/npy.h"
#include "io/safetensors.h"

namespace amxt::io {
namespace {

constexpr int64_t kBlockBytes = 1 << 20;
constexpr int64_t kDocumentStartsKept = 1 << 20;

// How token ids lie in a file.
struct Elements {
  int64_t begin = 0;  // offset in the file
  int64_t count = 0;
  int bytes = 0;  // of one
  bool is_signed = false;
  bool big_endian = false;
};

class Fingerprint {
 public:
  Fingerprint() : state_(XXH3_createState(), XXH3_freeState) {
    if (state_) XXH3_64bits_reset(state_.get());
  }
  void add(std::span<const std::byte> data) {
    if (state_) XXH3_64bits_update(state_.get(), data.data(), data.size());
  }
  void add(int64_t value) { add(std::as_bytes(std::span(&value, 1))); }
  uint64_t digest() const { return state_ ? XXH3_64bits_digest(state_.get()) : 0; }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

template <typename T>
T swap_bytes(T value) {
  using U = std::make_unsigned_t<T>;
  auto bits = static_cast<U>(value);
  if constexpr (sizeof(T) == 2) bits = __builtin_bswap16(bits);
  if constexpr (sizeof(T) == 4) bits = __builtin_bswap32(bits);
  if constexpr (sizeof(T) == 8) bits = __builtin_bswap64(bits);
  return static_cast<T>(bits);
}

// A token id that is no token: where it stands, and the id as text (it may not fit any type).
struct BadToken {
  size_t index;
  std::string value;
};

// Turns `data` into int32; stops at nothing, so that the loop stays simple: the first bad one is
// looked for when one was seen.
template <typename T>
std::optional<BadToken> decode_as(std::span<const std::byte> data, bool swap, uint64_t limit,
                                  std::span<int32_t> out) {
  const auto load = [&](size_t i) {
    T value;
    std::memcpy(&value, data.data() + i * sizeof(T), sizeof(T));
    return swap ? swap_bytes(value) : value;
  };
  bool bad = false;
  for (size_t i = 0; i < out.size(); ++i) {
    const T value = load(i);
    // A negative number becomes one beyond every limit.
    bad |= static_cast<uint64_t>(static_cast<int64_t>(value)) >= limit;
    out[i] = static_cast<int32_t>(value);
  }
  if (!bad) return {};
  for (size_t i = 0; i < out.size(); ++i) {
    const T value = load(i);
    if (static_cast<uint64_t>(static_cast<int64_t>(value)) >= limit) {
      return BadToken{i, fmt::format("{}", value)};
    }
  }
  return {};
}

std::optional<BadToken> decode(const Elements& e, std::span<const std::byte> data, uint64_t limit,
                               std::span<int32_t> out) {
  const bool swap = e.big_endian;
  switch (e.bytes) {
    case 1:
      return e.is_signed ? decode_as<int8_t>(data, false, limit, out)
                         : decode_as<uint8_t>(data, false, limit, out);
    case 2:
      return e.is_signed ? decode_as<int16_t>(data, swap, limit, out)
                         : decode_as<uint16_t>(data, swap, limit, out);
    case 4:
      return e.is_signed ? decode_as<int32_t>(data, swap, limit, out)
                         : decode_as<uint32_t>(data, swap, limit, out);
    default:
      return e.is_signed ? decode_as<int64_t>(data, swap, limit, out)
                         : decode_as<uint64_t>(data, swap, limit, out);
  }
}

// What all kinds share: reading token ids and the scan of open().
class ElementFile : public TokenFile {
 public:
  const TokenFileFacts& facts() const override { return facts_; }

  Status read_tokens(int64_t begin, std::span<int32_t> out) const override {
    std::vector<std::byte> block(out.size() * static_cast<size_t>(elements_.bytes));
    AMXT_TRY(file().read_at(elements_.begin + begin * elements_.bytes, block));
    const auto bad = decode(elements_, block, limit_, out);
    if (!bad) return {};
    return Error(Code::kFormat,
                 fmt::format("{}: token id {} at position {} of the file, {}: the file was changed "
                             "after it was opened",
                             quote(path()), bad->value, begin + static_cast<int64_t>(bad->index),
                             why_bad(*bad)));
  }

  Status read_weights(int64_t, std::span<float> out) const override {
    std::fill(out.begin(), out.end(), 1.0f);
    return {};
  }

 protected:
  explicit ElementFile(const TokenFileOptions& options)
      : limit_(options.vocab_size > 0 ? static_cast<uint64_t>(options.vocab_size)
                                      : uint64_t{1} << 31) {}

  virtual const File& file() const = 0;
  // The scan shows all tokens in turn; `begin` is the first one's position.
  virtual void see(int64_t begin, std::span<const int32_t> tokens) = 0;
  struct Place {
    int64_t document = 0;
    int64_t position = 0;  // in the document
  };
  // Of a position up to which the scan has come.
  virtual Result<Place> place_of(int64_t position) const = 0;

  // Reads everything once. Names document and position of the first token id that is none.
  Status scan(Fingerprint& fingerprint) {
    const int64_t step = kBlockBytes / elements_.bytes;
    std::vector<std::byte> block(
        static_cast<size_t>(std::min(step, elements_.count) * elements_.bytes));
    std::vector<int32_t> tokens(static_cast<size_t>(std::min(step, elements_.count)));
    for (int64_t begin = 0; begin < elements_.count; begin += step) {
      const auto count = static_cast<size_t>(std::min(step, elements_.count - begin));
      const auto data = std::span(block).first(count * static_cast<size_t>(elements_.bytes));
      const auto ids = std::span(tokens).first(count);
      AMXT_TRY(file().read_at(elements_.begin + begin * elements_.bytes, data));
      fingerprint.add(data);
      const auto bad = decode(elements_, data, limit_, ids);
      see(begin, ids.first(bad ? bad->index : count));
      if (bad) return bad_token(begin + static_cast<int64_t>(bad->index), *bad);
      for (const int32_t id : ids) facts_.largest_token = std::max(facts_.largest_token, id);
    }
    facts_.tokens = elements_.count;
    return {};
  }

  void hash_shape(Fingerprint& fingerprint) const {
    for (const int64_t value : {elements_.count, int64_t{elements_.bytes},
                                int64_t{elements_.is_signed}, int64_t{elements_.big_endian}}) {
      fingerprint.add(value);
    }
  }

  Elements elements_;
  uint64_t limit_;
  TokenFileFacts facts_;

 private:
  std::string why_bad(const BadToken& bad) const {
    if (bad.value.starts_with('-')) return "is negative";
    if (limit_ == uint64_t{1} << 31) return "is beyond 2^31";
    return fmt::format("is beyond the vocabulary of {}", limit_);
  }
  Error bad_token(int64_t position, const BadToken& bad) const {
    const Result<Place> place = place_of(position);
    if (!place) return place.error();
    return Error(Code::kFormat,
                 fmt::format("{}: document {}, position {}: token id {} {}", quote(path()),
                             place->document, place->position, bad.value, why_bad(bad)));
  }
};

// --- safetensors ---------------------------------------------------------------------------------

class TensorFile final : public ElementFile {
 public:
  TensorFile(SafetensorsFile tensors, const TokenFileOptions& options)
      : ElementFile(options), tensors_(std::move(tensors)) {}

  Status check() {
    AMXT_TRY(find_tensors());
    Fingerprint fingerprint;
    hash_shape(fingerprint);
    AMXT_TRY(check_offsets(fingerprint));
    AMXT_TRY(scan(fingerprint));
    if (weights_ != nullptr) AMXT_TRY(check_weights(fingerprint));
    facts_.fingerprint = fingerprint.digest();
    return {};
  }

  const std::string& path() const override { return tensors_.path(); }

  Status read_weights(int64_t begin, std::span<float> out) const override {
    if (weights_ == nullptr) return ElementFile::read_weights(begin, out);
    if (weights_->dtype == DType::kF32) {
      AMXT_TRY(tensors_.read(*weights_, begin * 4, std::as_writable_bytes(out)));
    } else {
      std::vector<uint8_t> bytes(out.size());
      AMXT_TRY(tensors_.read(*weights_, begin, std::as_writable_bytes(std::span(bytes))));
      std::copy(bytes.begin(), bytes.end(), out.begin());
    }
    for (size_t i = 0; i < out.size(); ++i) {
      if (!(out[i] >= 0) || std::isinf(out[i])) {
        return bad_weight(begin + static_cast<int64_t>(i), out[i]);
      }
    }
    return {};
  }

  Result<int64_t> document_begin(int64_t document) const override {
    int64_t begin = 0;
    AMXT_TRY(read_offsets(document, std::span(&begin, 1)));
    if (begin < 0 || begin > facts_.tokens) {
      return in_file(
          fmt::format("document_offsets[{}] is {}: the file was changed after it was "
                      "opened",
                      document, begin));
    }
    return begin;
  }

  Status mark_starts(int64_t begin, std::span<const int32_t> tokens,
                     std::span<uint8_t> starts) const override {
    std::fill(starts.begin(), starts.end(), uint8_t{0});
    const int64_t end = begin + static_cast<int64_t>(tokens.size());
    AMXT_ASSIGN(int64_t document, document_of(begin));
    std::vector<int64_t> offsets(256);
    for (++document; document < facts_.documents;
         document += static_cast<int64_t>(offsets.size())) {
      offsets.resize(static_cast<size_t>(
          std::min<int64_t>(static_cast<int64_t>(offsets.size()), facts_.documents - document)));
      AMXT_TRY(read_offsets(document, offsets));
      for (const int64_t offset : offsets) {
        if (offset >= end) return {};
        if (offset >= begin) starts[static_cast<size_t>(offset - begin)] = 1;
      }
    }
    return {};
  }

 protected:
  const File& file() const override { return tensors_.file(); }
  void see(int64_t, std::span<const int32_t>) override {}
  Result<Place> place_of(int64_t position) const override {
    AMXT_ASSIGN(const int64_t document, document_of(position));
    AMXT_ASSIGN(const int64_t begin, document_begin(document));
    return Place{document, position - begin};
  }

 private:
  Error in_file(std::string message) const {
    return Error(Code::kFormat, fmt::format("{}: {}", quote(path()), message));
  }

  Status find_tensors() {
    for (const TensorEntry& tensor : tensors_.tensors()) {
      if (tensor.name != "tokens" && tensor.name != "document_offsets" &&
          tensor.name != "loss_weight") {
        return in_file(
            fmt::format("tensor {}: a token file has tokens, document_offsets and "
                        "loss_weight only",
                        quote(tensor.name)));
      }
      if (tensor.shape.size() != 1) {
        return in_file(fmt::format("tensor {}: {} dimensions, not one", quote(tensor.name),
                                   tensor.shape.size()));
      }
    }
    AMXT_ASSIGN(const TensorEntry* tokens, tensors_.require("tokens"));
    AMXT_ASSIGN(offsets_, tensors_.require("document_offsets"));
    weights_ = tensors_.find("loss_weight");
    if (tokens->dtype != DType::kU16 && tokens->dtype != DType::kU32) {
      return in_file(
          fmt::format("tensor 'tokens': is {}, not U16 or U32", dtype_name(tokens->dtype)));
    }
    if (offsets_->dtype != DType::kI64) {
      return in_file(
          fmt::format("tensor 'document_offsets': is {}, not I64", dtype_name(offsets_->dtype)));
    }
    elements_.begin = tokens->begin;
    elements_.count = tokens->elements();
    elements_.bytes = static_cast<int>(dtype_bytes(tokens->dtype));
    return check_weight_tensor();
  }

  Status check_weight_tensor() const {
    if (weights_ == nullptr) return {};
    if (weights_->dtype != DType::kU8 && weights_->dtype != DType::kF32) {
      return in_file(
          fmt::format("tensor 'loss_weight': is {}, not U8 or F32", dtype_name(weights_->dtype)));
    }
    if (weights_->elements() != elements_.count) {
      return in_file(fmt::format("tensor 'loss_weight': {} weights for {} tokens",
                                 weights_->elements(), elements_.count));
    }
    return {};
  }

  Status read_offsets(int64_t begin, std::span<int64_t> out) const {
    return tensors_.read(*offsets_, begin * 8, std::as_writable_bytes(out));
  }

  Status check_offsets(Fingerprint& fingerprint) {
    const int64_t count = offsets_->elements();
    if (count < 2) return in_file("tensor 'document_offsets': no document");
    facts_.documents = count - 1;
    std::vector<int64_t> block;
    int64_t last = 0;
    for (int64_t begin = 0; begin < count; begin += static_cast<int64_t>(block.size())) {
      block.resize(static_cast<size_t>(std::min<int64_t>(kBlockBytes / 8, count - begin)));
      AMXT_TRY(read_offsets(begin, block));
      fingerprint.add(std::as_bytes(std::span(block)));
      for (size_t i = 0; i < block.size(); ++i) {
        const int64_t at = begin + static_cast<int64_t>(i);
        if (at == 0 && block[i] != 0) {
          return in_file(
              fmt::format("tensor 'document_offsets': the first is {}, not 0", block[i]));
        }
        if (block[i] < last) {
          return in_file(
              fmt::format("tensor 'document_offsets': number {} is {}, below {} before it", at,
                          block[i], last));
        }
        last = block[i];
      }
    }
    if (last != elements_.count) {
      return in_file(
          fmt::format("tensor 'document_offsets': the last is {}, but there are {} tokens", last,
                      elements_.count));
    }
    facts_.tokens = elements_.count;
    return {};
  }

  Status check_weights(Fingerprint& fingerprint) {
    facts_.has_loss_weight = true;
    const int64_t step = kBlockBytes / 4;
    std::vector<float> block;
    for (int64_t begin = 0; begin < elements_.count; begin += step) {
      block.resize(static_cast<size_t>(std::min(step, elements_.count - begin)));
      AMXT_TRY(read_weights(begin, block));
      fingerprint.add(std::as_bytes(std::span(block)));
    }
    return {};
  }

  Error bad_weight(int64_t position, float weight) const {
    const Result<Place> place = place_of(position);
    if (!place) return place.error();
    return in_file(fmt::format("document {}, position {}: loss weight {} is {}", place->document,
                               place->position, weight, weight < 0 ? "negative" : "not finite"));
  }

  // The document that holds a position: the last one that begins at or before it.
  Result<int64_t> document_of(int64_t position) const {
    int64_t low = 0;
    int64_t high = facts_.documents;  // document_begin(high) > position
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      AMXT_ASSIGN(const int64_t begin, document_begin(middle));
      (begin <= position ? low : high) = middle;
    }
    return low;
  }

  SafetensorsFile tensors_;
  const TensorEntry* offsets_ = nullptr;
  const TensorEntry* weights_ = nullptr;
};

// --- two-dimensional .npy ------------------------------------------------------------------------

class RowsFile final : public ElementFile {
 public:
  RowsFile(File file, const Elements& elements, int64_t rows, int64_t columns,
           const TokenFileOptions& options)
      : ElementFile(options), file_(std::move(file)), columns_(columns) {
    elements_ = elements;
    facts_.documents = rows;
  }

  Status check() {
    Fingerprint fingerprint;
    hash_shape(fingerprint);
    fingerprint.add(columns_);
    AMXT_TRY(scan(fingerprint));
    facts_.fingerprint = fingerprint.digest();
    return {};
  }

  const std::string& path() const override { return file_.path(); }
  Result<int64_t> document_begin(int64_t document) const override { return document * columns_; }
  Status mark_starts(int64_t begin, std::span<const int32_t> tokens,
                     std::span<uint8_t> starts) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      starts[i] = (begin + static_cast<int64_t>(i)) % columns_ == 0;
    }
    return {};
  }

 protected:
  const File& file() const override { return file_; }
  void see(int64_t, std::span<const int32_t>) override {}
  Result<Place> place_of(int64_t position) const override {
    return Place{position / columns_, position % columns_};
  }

 private:
  File file_;
  int64_t columns_;
};

// --- streams -------------------------------------------------------------------------------------

class StreamFile final : public ElementFile {
 public:
  StreamFile(File file, const Elements& elements, const TokenFileOptions& options)
      : ElementFile(options), file_(std::move(file)), separator_(options.separator.value_or(-1)) {
    elements_ = elements;
  }

  Status check() {
    Fingerprint fingerprint;
    hash_shape(fingerprint);
    fingerprint.add(separator_);
    AMXT_TRY(scan(fingerprint));
    // What is behind the last separator is a document, too.
    facts_.documents = ended_ + (open_begin_ < elements_.count ? 1 : 0);
    facts_.fingerprint = fingerprint.digest();
    return {};
  }

  const std::string& path() const override { return file_.path(); }

  Result<int64_t> document_begin(int64_t document) const override {
    if (document >= facts_.documents) return facts_.tokens;
    int64_t begin = starts_[static_cast<size_t>(document / every_)];
    int64_t missing = document % every_;
    std::vector<int32_t> tokens;
    for (; missing > 0 && begin < facts_.tokens; begin += static_cast<int64_t>(tokens.size())) {
      tokens.resize(
          static_cast<size_t>(std::min<int64_t>(kBlockBytes / 16, facts_.tokens - begin)));
      AMXT_TRY(read_tokens(begin, tokens));
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] != separator_) continue;
        if (--missing == 0) return begin + static_cast<int64_t>(i) + 1;
      }
    }
    if (missing > 0) {
      return Error(Code::kFormat,
                   fmt::format("{}: document {} is gone: the file was changed after it was opened",
                               quote(path()), document));
    }
    return begin;
  }

  Status mark_starts(int64_t, std::span<const int32_t> tokens,
                     std::span<uint8_t> starts) const override {
    for (size_t i = 1; i < tokens.size(); ++i) starts[i] = tokens[i - 1] == separator_;
    if (!starts.empty()) starts[0] = 0;
    return {};
  }

 protected:
  const File& file() const override { return file_; }

  void see(int64_t begin, std::span<const int32_t> tokens) override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] != separator_) continue;
      ++ended_;
      open_begin_ = begin + static_cast<int64_t>(i) + 1;
      if (ended_ % every_ == 0) keep_start(open_begin_);
    }
  }

  Result<Place> place_of(int64_t position) const override {
    return Place{ended_, position - open_begin_};
  }

 private:
  // starts_[i] is where document i * every_ begins.
  void keep_start(int64_t begin) {
    if (static_cast<int64_t>(starts_.size()) == kDocumentStartsKept) {
      for (size_t i = 0; 2 * i < starts_.size(); ++i) starts_[i] = starts_[2 * i];
      starts_.resize(starts_.size() / 2);
      every_ *= 2;
      if (ended_ % every_ != 0) return;
    }
    starts_.push_back(begin);
  }

  File file_;
  int64_t separator_;  // -1, which no token is, when there is none
  std::vector<int64_t> starts_ = {0};
  int64_t every_ = 1;
  int64_t ended_ = 0;
  int64_t open_begin_ = 0;
};

// -------------------------------------------------------------------------------------------------

Error no_document(const std::string& path) {
  return Error(Code::kFormat, fmt::format("{}: no document", quote(path)));
}

template <typename T>
Result<std::unique_ptr<TokenFile>> checked(std::unique_ptr<T> file) {
  AMXT_TRY(file->check());
  if (file->facts().documents == 0) return no_document(file->path());
  return std::unique_ptr<TokenFile>(std::move(file));
}

Result<std::unique_ptr<TokenFile>> open_npy(const std::string& path,
                                            const TokenFileOptions& options) {
  AMXT_ASSIGN(File file, File::open_read(path));
  AMXT_ASSIGN(const NpyHeader header, read_npy_header(file));
  const Elements elements{header.data_begin, header.items, header.item_bytes, header.is_signed,
                          header.big_endian};
  if (header.shape.size() == 2) {
    return checked(std::make_unique<RowsFile>(std::move(file), elements, header.shape[0],
                                              header.shape[1], options));
  }
  return checked(std::make_unique<StreamFile>(std::move(file), elements, options));
}

Result<std::unique_ptr<TokenFile>> open_bin(const std::string& path,
                                            const TokenFileOptions& options) {
  AMXT_ASSIGN(File file, File::open_read(path));
  AMXT_ASSIGN(const int64_t bytes, file.size());
  int token_bytes = options.bin_token_bytes;
  if (token_bytes == 0) token_bytes = options.vocab_size > 65536 ? 4 : 2;
  if (bytes % token_bytes != 0) {
    return Error(Code::kFormat,
                 fmt::format("{}: {} bytes are no whole number of tokens of {} bytes (uint{})",
                             quote(path), bytes, token_bytes, 8 * token_bytes));
  }
  Elements elements;
  elements.count = bytes / token_bytes;
  elements.bytes = token_bytes;
  return checked(std::make_unique<StreamFile>(std::move(file), elements, options));
}

Result<std::unique_ptr<TokenFile>> open_tensors(const std::string& path,
                                                const TokenFileOptions& options) {
  AMXT_ASSIGN(SafetensorsFile tensors, SafetensorsFile::open(path));
  return checked(std::make_unique<TensorFile>(std::move(tensors), options));
}

}  // namespace

Result<std::unique_ptr<TokenFile>> TokenFile::open(const std::string& path,
                                                   const TokenFileOptions& options) {
  if (options.bin_token_bytes != 0 && options.bin_token_bytes != 2 &&
      options.bin_token_bytes != 4) {
    return Error(Code::kInvalidArgument,
                 fmt::format("bin_token_bytes {}: not one of 0, 2, 4", options.bin_token_bytes));
  }
  if (path.ends_with(".safetensors")) return open_tensors(path, options);
  if (path.ends_with(".npy")) return open_npy(path, options);
  if (path.ends_with(".bin")) return open_bin(path, options);
  return Error(Code::kFormat,
               fmt::format("{}: a token file ends in .safetensors, .npy or .bin", quote(path)));
}

}  // namespace amxt::io
