// Dataset: token files cut into samples of T positions.
//
// Sources: our safetensors token file (tokens U16/U32, document_offsets I64, optional loss_weight U8/F32), `.npy` (any integer type; one
// dimension is a stream, two a document a row), `.bin` (little-endian uint16, uint32 when the vocabulary exceeds 65,536 or asked for).
// Streams are cut into documents after each separator token (the separator belongs to the document it ends); no separator: one document.
// Tokens stay in the files' pages (read by pread in blocks or mapped privately); a token id beyond the vocabulary names file,
// document and position.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace amxt::io {

enum class PackMode : int32_t { kPack = 0, kPad = 1 };

struct DatasetOptions {
  std::vector<std::string> paths;
  PackMode mode = PackMode::kPack;
  int64_t sequence_length = 512;     // T; 0: not known yet, samples are read from at() a length
  int64_t vocab_size = 0;            // token ids are below it; 0: below 2^31
  std::optional<int64_t> separator;  // for .npy and .bin streams
  int bin_token_bytes = 0;           // 2 or 4; 0: by vocabulary
};

inline constexpr int32_t kNoTarget = -1;

// One sample, all arrays of length T. pack: T consecutive positions of the documents laid end to end over all files in the order given,
// stride T, the last one padded. pad: one document, cut at T, padded.
// target[t]: the token that position t predicts (next token of the same document when that lies in the sample), else kNoTarget.
// weight[t]: loss weight of the *target* token; 0 where there is none.
// document_start[t]: index in the sample of the first position of t's document; pads are each a document of their own.
// position[t]: t - document_start[t] (rotary position).
struct SampleView {
  std::span<int32_t> token, target, document_start, position;
  std::span<float> weight;
};

struct SampleCounts {
  int64_t tokens = 0;   // positions that are not padding
  int64_t counted = 0;  // positions with a target of non-zero weight
  double weight = 0;    // sum of weights: the N of the loss (= counted when weights are 0 or 1)
};

// Thread-safe after open().
class Dataset {
 public:
  static Result<std::unique_ptr<Dataset>> open(const DatasetOptions& options);
  virtual ~Dataset() = default;

  virtual int64_t samples() const = 0;
  virtual int64_t documents() const = 0;
  virtual int64_t tokens() const = 0;  // in the files
  virtual const DatasetOptions& options() const = 0;
  virtual Result<SampleCounts> read(int64_t sample, const SampleView& out) const = 0;
  // Changes when any token, document bound or weight of the data does (XXH3 of all of them, taken by the scan of open()); not with mode, T
  // or the files' names. A resumed job says so when its data is not what it was.
  virtual uint64_t fingerprint() const = 0;
  virtual int32_t largest_token() const = 0;  // -1 when there is no token
  virtual bool has_loss_weight() const = 0;
  // The same data cut to another length or mode; nothing is read or scanned again. kInvalidArgument for a length below 1, kFormat when
  // there is no sample.
  virtual Result<std::unique_ptr<Dataset>> at(int64_t sequence_length, PackMode mode) const = 0;
};

// The loss_weight of a token file to be written.
enum class TokenWeights : int32_t { kNone = 0, kU8 = 1, kF32 = 2 };

struct TokenWriterOptions {
  int token_bytes = 4;     // 2 or 4
  int64_t vocab_size = 0;  // token ids are below it; 0: whatever the type holds (below 2^31)
  TokenWeights weights = TokenWeights::kNone;
  bool omit_plain_weights = false;  // leaves loss_weight out when every weight given was 1
  bool overwrite = false;           // replaces a file that is there
};

// Writes a token file in one go of documents, streaming: nothing of the corpus's size is kept but the offsets. Tokens and weights wait in
// unnamed files beside the target, so that a full disk shows while writing and a killed writer leaves nothing behind.
// After an error only destruction is allowed. Not thread-safe.
class TokenFileWriter {
 public:
  // kExists when `path` is there and may not be replaced; kNotFound for a missing directory.
  static Result<std::unique_ptr<TokenFileWriter>> create(const std::string& path,
                                                         const TokenWriterOptions& options);
  // U16 up to a vocabulary of 65,536, else U32; weights 0 or 1.
  static Result<std::unique_ptr<TokenFileWriter>> create(const std::string& path,
                                                         int64_t vocab_size, bool with_weights);
  virtual ~TokenFileWriter() = default;

  // Adds to the document that is open. `weights`: one for each token as a target, or empty: all 1. kInvalidArgument for a token that the
  // type or the vocabulary can't hold, or a weight that is negative, not finite, or (kU8) not 0 or 1;
  // both name the document and the position.
  virtual Status append(std::span<const int32_t> tokens, std::span<const float> weights) = 0;
  // Ends the open document, which may be empty.
  virtual Status end_document() = 0;
  // A whole document.
  virtual Status add_document(std::span<const int32_t> tokens,
                              std::span<const uint8_t> weights) = 0;
  // Puts the file under its name, synced. kInvalidState without a document or a token, with a document open, or when called twice.
  virtual Status finish() = 0;  // without it nothing is left at `path`

  virtual int64_t documents() const = 0;
  virtual int64_t tokens() const = 0;
};

}  // namespace amxt::io
