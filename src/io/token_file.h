// TokenFile: one file of tokens, checked whole when it is opened, then read in pieces.
//
// Whatever the kind of file, it is a row of token ids cut into documents: document d holds the
// positions from document_begin(d) to document_begin(d + 1). Memory does not grow with the file.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"

namespace amxt::io {

struct TokenFileOptions {
  int64_t vocab_size = 0;            // token ids are below it; 0: below 2^31
  std::optional<int64_t> separator;  // ends a document of a stream, and belongs to it
  int bin_token_bytes = 0;           // 2 or 4; 0: by vocabulary
};

struct TokenFileFacts {
  int64_t tokens = 0;
  int64_t documents = 0;
  int32_t largest_token = -1;  // -1 when there is no token
  bool has_loss_weight = false;
  uint64_t fingerprint = 0;  // XXH3 of tokens, bounds and weights
};

// Thread-safe after open().
class TokenFile {
 public:
  // By the ending of the name: .safetensors, .npy or .bin. Every token, weight and document bound is
  // checked; an error names the file, and document and position where there is one.
  static Result<std::unique_ptr<TokenFile>> open(const std::string& path,
                                                 const TokenFileOptions& options);
  virtual ~TokenFile() = default;

  virtual const std::string& path() const = 0;
  virtual const TokenFileFacts& facts() const = 0;
  // The tokens from `begin` on. They are checked again: the file may have been changed since.
  virtual Status read_tokens(int64_t begin, std::span<int32_t> out) const = 0;
  // Loss weights of the tokens from `begin` on, as targets; 1 in a file without them.
  virtual Status read_weights(int64_t begin, std::span<float> out) const = 0;
  // First position of a document; all tokens for the number of documents.
  virtual Result<int64_t> document_begin(int64_t document) const = 0;
  // Sets starts[i] to 1 where position begin + i is the first of a document, else to 0; `tokens` are
  // the tokens there. starts[0] says nothing.
  virtual Status mark_starts(int64_t begin, std::span<const int32_t> tokens,
                             std::span<uint8_t> starts) const = 0;
};

}  // namespace amxt::io
