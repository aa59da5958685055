#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/dtype.h"
#include "base/file.h"
#include "base/text.h"
#include "io/dataset.h"
#include "io/safetensors.h"

namespace amxt::io {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

// A file without a name beside the target, written from front to end.
class Spill {
 public:
  static Result<Spill> create(const std::string& path) {
    AMXT_TRY(remove_tree(path));
    AMXT_ASSIGN(File file, File::create(path));
    // From here on it lives by its descriptor alone: a killed process leaves nothing.
    AMXT_TRY(remove_tree(path));
    return Spill(std::move(file));
  }

  template <typename T>
  Status add(T value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    buffer_.insert(buffer_.end(), bytes, bytes + sizeof(T));
    return buffer_.size() >= kBufferBytes ? flush() : Status{};
  }
  Status flush() {
    AMXT_TRY(file_.write_at(bytes_, buffer_));
    bytes_ += static_cast<int64_t>(buffer_.size());
    buffer_.clear();
    return {};
  }
  // Everything, into a tensor of the same size; flushed before.
  Status copy_to(SafetensorsWriter& writer, const TensorEntry& tensor) const {
    std::vector<std::byte> block;
    for (int64_t at = 0; at < bytes_; at += static_cast<int64_t>(block.size())) {
      block.resize(static_cast<size_t>(std::min<int64_t>(kBufferBytes, bytes_ - at)));
      AMXT_TRY(file_.read_at(at, block));
      AMXT_TRY(writer.write(tensor, at, block));
    }
    return {};
  }

 private:
  explicit Spill(File file) : file_(std::move(file)) {}
  File file_;
  std::vector<std::byte> buffer_;
  int64_t bytes_ = 0;
};

class Writer final : public TokenFileWriter {
 public:
  Writer(std::string path, const TokenWriterOptions& options, Spill tokens,
         std::optional<Spill> weights)
      : path_(std::move(path)),
        options_(options),
        tokens_(std::move(tokens)),
        weights_(std::move(weights)) {
    limit_ = options.token_bytes == 2 ? 65536 : std::numeric_limits<int32_t>::max() + int64_t{1};
    if (options.vocab_size > 0) limit_ = std::min(limit_, options.vocab_size);
  }

  Status append(std::span<const int32_t> tokens, std::span<const float> weights) override {
    if (!weights.empty() && weights.size() != tokens.size()) {
      return invalid(fmt::format("{} loss weights for {} tokens", weights.size(), tokens.size()));
    }
    if (!weights.empty() && !weights_) return invalid("loss weights for a file without them");
    for (size_t i = 0; i < tokens.size(); ++i) {
      AMXT_TRY(add(tokens[i], weights.empty() ? 1.0f : weights[i]));
    }
    open_ = true;
    return {};
  }

  Status end_document() override {
    AMXT_TRY(writable());
    offsets_.push_back(count_);
    open_ = false;
    return {};
  }

  Status add_document(std::span<const int32_t> tokens, std::span<const uint8_t> weights) override {
    if (open_) return Error(Code::kInvalidState, "a document is open");
    AMXT_TRY(append(tokens, std::vector<float>(weights.begin(), weights.end())));
    return end_document();
  }

  Status finish() override {
    AMXT_TRY(writable());
    if (open_) return Error(Code::kInvalidState, fmt::format("{}: a document is open", name()));
    if (documents() == 0) return Error(Code::kInvalidState, fmt::format("{}: no document", name()));
    if (count_ == 0) return Error(Code::kInvalidState, fmt::format("{}: no token", name()));
    finished_ = true;
    const std::string temporary = path_ + ".tmp";
    AMXT_TRY(remove_tree(temporary));
    Status status = write_file(temporary);
    if (status) status = publish(temporary);
    if (!status) {
      // The first error counts; what can't be removed is replaced by the next writer.
      const Status removed = remove_tree(temporary);
      static_cast<void>(removed);
    }
    return status;
  }

  int64_t documents() const override { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t tokens() const override { return count_; }

 private:
  std::string name() const { return quote(path_); }
  Error invalid(std::string message) const {
    return Error(Code::kInvalidArgument, fmt::format("{}: {}", name(), message));
  }
  Status writable() const {
    if (finished_) return Error(Code::kInvalidState, fmt::format("{}: is finished", name()));
    return {};
  }

  Status add(int32_t token, float weight) {
    AMXT_TRY(writable());
    const int64_t position = count_ - offsets_.back();
    if (token < 0 || token >= limit_) {
      return invalid(fmt::format("document {}, position {}: token id {} is not from 0 to {}",
                                 documents(), position, token, limit_ - 1));
    }
    AMXT_TRY(options_.token_bytes == 2 ? tokens_.add(static_cast<uint16_t>(token))
                                       : tokens_.add(static_cast<uint32_t>(token)));
    if (weights_) AMXT_TRY(add_weight(weight, position));
    ++count_;
    return {};
  }

  Status add_weight(float weight, int64_t position) {
    const bool is_byte = options_.weights == TokenWeights::kU8;
    if (!(weight >= 0) || std::isinf(weight) || (is_byte && weight != 0 && weight != 1)) {
      return invalid(fmt::format("document {}, position {}: loss weight {} is not {}", documents(),
                                 position, weight, is_byte ? "0 or 1" : "a number of 0 or more"));
    }
    plain_ = plain_ && weight == 1;
    return is_byte ? weights_->add(static_cast<uint8_t>(weight)) : weights_->add(weight);
  }

  // Larger elements first, so that each tensor is aligned.
  std::vector<TensorPlan> plan(bool with_weights) const {
    std::vector<TensorPlan> plan = {
        {"document_offsets", DType::kI64, {static_cast<int64_t>(offsets_.size())}},
        {"tokens", options_.token_bytes == 2 ? DType::kU16 : DType::kU32, {count_}}};
    if (!with_weights) return plan;
    const bool is_byte = options_.weights == TokenWeights::kU8;
    plan.insert(is_byte ? plan.end() : plan.begin() + 1,
                TensorPlan{"loss_weight", is_byte ? DType::kU8 : DType::kF32, {count_}});
    return plan;
  }

  Status write_file(const std::string& temporary) {
    AMXT_TRY(tokens_.flush());
    if (weights_) AMXT_TRY(weights_->flush());
    const bool with_weights = weights_ && !(options_.omit_plain_weights && plain_);
    AMXT_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(temporary, plan(with_weights)));
    for (const TensorEntry& tensor : writer.tensors()) {
      if (tensor.name == "document_offsets") {
        AMXT_TRY(writer.write(tensor, 0, std::as_bytes(std::span(offsets_))));
      } else {
        const Spill& from = tensor.name == "tokens" ? tokens_ : *weights_;
        AMXT_TRY(from.copy_to(writer, tensor));
      }
    }
    return writer.finish();
  }

  Status publish(const std::string& temporary) {
    if (!options_.overwrite && path_exists(path_)) {
      return Error(Code::kExists, fmt::format("{}: exists", name()));
    }
    AMXT_TRY(rename_path(temporary, path_));
    return sync_directory(parent_path(path_));
  }

  std::string path_;
  TokenWriterOptions options_;
  Spill tokens_;
  std::optional<Spill> weights_;
  int64_t limit_ = 0;
  int64_t count_ = 0;
  std::vector<int64_t> offsets_ = {0};
  bool open_ = false;
  bool plain_ = true;  // every weight was 1
  bool finished_ = false;
};

}  // namespace

Result<std::unique_ptr<TokenFileWriter>> TokenFileWriter::create(
    const std::string& path, const TokenWriterOptions& options) {
  if (options.token_bytes != 2 && options.token_bytes != 4) {
    return Error(Code::kInvalidArgument,
                 fmt::format("token_bytes {}: not 2 or 4", options.token_bytes));
  }
  if (!path.ends_with(".safetensors")) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{}: a token file's name ends in .safetensors", quote(path)));
  }
  if (is_directory(path)) {
    return Error(Code::kExists, fmt::format("{}: is a directory", quote(path)));
  }
  if (!options.overwrite && path_exists(path)) {
    return Error(Code::kExists, fmt::format("{}: exists", quote(path)));
  }
  AMXT_ASSIGN(Spill tokens, Spill::create(path + ".tokens.tmp"));
  std::optional<Spill> weights;
  if (options.weights != TokenWeights::kNone) {
    AMXT_ASSIGN(weights, Spill::create(path + ".weights.tmp"));
  }
  return std::unique_ptr<TokenFileWriter>(
      std::make_unique<Writer>(path, options, std::move(tokens), std::move(weights)));
}

Result<std::unique_ptr<TokenFileWriter>> TokenFileWriter::create(const std::string& path,
                                                                 int64_t vocab_size,
                                                                 bool with_weights) {
  TokenWriterOptions options;
  options.token_bytes = vocab_size > 0 && vocab_size <= 65536 ? 2 : 4;
  options.vocab_size = vocab_size;
  options.weights = with_weights ? TokenWeights::kU8 : TokenWeights::kNone;
  return create(path, options);
}

}  // namespace amxt::io
