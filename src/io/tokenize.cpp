#include "io/tokenize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "io/dataset.h"

namespace amxt::io {
namespace {

constexpr int64_t kBlockBytes = 1 << 20;

class Tokenizer {
 public:
  Tokenizer(const TokenizeOptions& options, TokenFileWriter& writer)
      : options_(options), writer_(writer) {}

  // Looks at all first: a path that is not there shows before hours of work.
  Result<TokenizeSummary> run() {
    for (const std::string& path : options_.paths) {
      AMXT_ASSIGN(const File file, File::open_read(path));
      if (path.ends_with(".json")) {
        // As plain text it would teach brackets and keys.
        return Error(Code::kFormat,
                     fmt::format("{}: a .json file is neither plain text nor .jsonl: give one "
                                 "document a line",
                                 quote(path)));
      }
      AMXT_ASSIGN(const int64_t bytes, file.size());
      all_ += bytes;
    }
    for (const std::string& path : options_.paths) {
      AMXT_ASSIGN(const File file, File::open_read(path));
      AMXT_TRY(path.ends_with(".jsonl") ? lines(file) : text(file));
    }
    summary_.documents = writer_.documents();
    summary_.tokens = writer_.tokens();
    return summary_;
  }

 private:
  Status text(const File& file) {
    AMXT_ASSIGN(const int64_t bytes, file.size());
    for (int64_t at = 0; at < bytes; at += kBlockBytes) {
      AMXT_TRY(read_block(file, at, bytes));
      AMXT_TRY(add(block_, 1));
    }
    return writer_.end_document();
  }

  Status lines(const File& file) {
    AMXT_ASSIGN(const int64_t bytes, file.size());
    std::string line;
    int64_t number = 1;
    for (int64_t at = 0; at < bytes; at += kBlockBytes) {
      AMXT_TRY(read_block(file, at, bytes));
      std::string_view left = block_;
      while (!left.empty()) {
        const size_t end = left.find('\n');
        const std::string_view piece = left.substr(0, end);
        if (static_cast<int64_t>(line.size() + piece.size()) > kJsonLineLimit) {
          return in_line(
              file, number,
              Error(Code::kLimit, fmt::format("longer than {}", bytes_text(kJsonLineLimit))));
        }
        line += piece;
        if (end == std::string_view::npos) break;
        left.remove_prefix(end + 1);
        AMXT_TRY(record(file, number++, line));
        line.clear();
      }
    }
    return record(file, number, line);
  }

  static Error in_line(const File& file, int64_t number, Error error) {
    return std::move(error).in(fmt::format("{}: line {}", quote(file.path()), number));
  }

  Status record(const File& file, int64_t number, std::string_view line) {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return {};
    Result<Json> json = parse_json(line);
    if (!json) return in_line(file, number, std::move(json).error());
    if (Status status = add_record(*json); !status) {
      return in_line(file, number, std::move(status).error());
    }
    return {};
  }

  // The value of a key that must be a text, empty when the key is not there.
  static Result<std::optional<std::string_view>> text_of(const Json& json, const char* key) {
    const auto found = json.find(key);
    if (found == json.end()) return std::optional<std::string_view>();
    if (!found->is_string()) {
      return Error(Code::kFormat, fmt::format("key '{}': is not a text", key));
    }
    return std::optional<std::string_view>(found->get_ref<const std::string&>());
  }

  Status add_record(const Json& json) {
    if (!json.is_object()) return Error(Code::kFormat, "not a JSON object");
    AMXT_ASSIGN(const auto text, text_of(json, "text"));
    AMXT_ASSIGN(const auto prompt, text_of(json, "prompt"));
    AMXT_ASSIGN(const auto completion, text_of(json, "completion"));
    if (text && (prompt || completion)) {
      return Error(Code::kFormat, "has both 'text' and 'prompt' or 'completion'");
    }
    if (text) {
      AMXT_TRY(add(*text, 1));
    } else if (prompt && completion) {
      AMXT_TRY(add(*prompt, 0));
      AMXT_TRY(add(*completion, 1));
      summary_.masked += static_cast<int64_t>(prompt->size());
    } else {
      return Error(Code::kFormat, "has neither 'text' nor 'prompt' and 'completion'");
    }
    return writer_.end_document();
  }

  Status add(std::string_view bytes, float weight) {
    for (size_t at = 0; at < bytes.size(); at += kBlockBytes) {
      const std::string_view piece = bytes.substr(at, kBlockBytes);
      tokens_.resize(piece.size());
      std::transform(piece.begin(), piece.end(), tokens_.begin(),
                     [](char c) { return static_cast<int32_t>(static_cast<unsigned char>(c)); });
      weights_.assign(piece.size(), weight);
      AMXT_TRY(writer_.append(tokens_, weights_));
    }
    return {};
  }

  Status read_block(const File& file, int64_t at, int64_t bytes) {
    block_.resize(static_cast<size_t>(std::min(kBlockBytes, bytes - at)));
    AMXT_TRY(file.read_at(at, std::as_writable_bytes(std::span(block_))));
    done_ += static_cast<int64_t>(block_.size());
    if (options_.progress && !options_.progress(done_, all_)) {
      return Error(Code::kCancelled, fmt::format("{}: cancelled", quote(options_.out)));
    }
    return {};
  }

  const TokenizeOptions& options_;
  TokenFileWriter& writer_;
  TokenizeSummary summary_;
  std::string block_;
  std::vector<int32_t> tokens_;
  std::vector<float> weights_;
  int64_t done_ = 0;
  int64_t all_ = 0;
};

}  // namespace

Result<TokenizeSummary> tokenize(const TokenizeOptions& options) {
  if (options.paths.empty()) return Error(Code::kInvalidArgument, "no text file");
  TokenWriterOptions writer_options;
  writer_options.token_bytes = 2;
  writer_options.vocab_size = kByteVocabulary;
  writer_options.weights = TokenWeights::kU8;
  writer_options.omit_plain_weights = true;
  writer_options.overwrite = options.overwrite;
  AMXT_ASSIGN(const std::unique_ptr<TokenFileWriter> writer,
              TokenFileWriter::create(options.out, writer_options));
  AMXT_ASSIGN(const TokenizeSummary summary, Tokenizer(options, *writer).run());
  if (summary.tokens == 0) {
    const size_t others = options.paths.size() - 1;
    return Error(
        Code::kFormat,
        fmt::format(
            "{}{}: nothing to learn from: {} and no token", quote(options.paths.front()),
            others == 0 ? std::string()
                        : " and " + counted(static_cast<int64_t>(others), "other file"),
            summary.documents == 0 ? "no document" : counted(summary.documents, "document")));
  }
  AMXT_TRY(writer->finish());
  return summary;
}

}  // namespace amxt::io
