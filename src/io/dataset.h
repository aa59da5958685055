// Dataset: token files cut into samples of T positions.
//
// Sources: our safetensors token file (tokens U16/U32, document_offsets I64, optional loss_weight U8/F32), `.npy` (any integer type; one
// dimension is a stream, two a document a row), `.bin` (little-endian uint16, uint32 when the vocabulary exceeds 65,536 or asked for).
// Streams are cut into documents after each separator token (the separator belongs to the document it ends); no separator: one document.
// Tokens stay in the files' pages (read by pread in blocks or mapped privately); a token id beyond the vocabulary names file, document and position.
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
  int64_t sequence_length = 512;           // T
  int64_t vocab_size = 0;
  std::optional<int64_t> separator;        // for .npy and .bin streams
  int bin_token_bytes = 0;                 // 2 or 4; 0: by vocabulary
};

inline constexpr int32_t kNoTarget = -1;

// One sample, all arrays of length T. pack: T consecutive positions of the documents laid end to end over all files in the order given, stride
// T, the last one padded. pad: one document, cut at T, padded.
// target[t]: the token that position t predicts (next token of the same document when that lies in the sample), else kNoTarget.
// weight[t]: loss weight of the *target* token; 0 where there is none.
// document_start[t]: index in the sample of the first position of t's document; pads are each a document of their own.
// position[t]: t - document_start[t] (rotary position).
struct SampleView {
  std::span<int32_t> token, target, document_start, position;
  std::span<float> weight;
};

struct SampleCounts {
  int64_t tokens = 0;    // positions that are not padding
  int64_t counted = 0;   // positions with a target of non-zero weight
  double weight = 0;     // sum of weights: the N of the loss (= counted when weights are 0 or 1)
};

// Thread-safe after open().
class Dataset {
 public:
  static Result<std::unique_ptr<Dataset>> open(const DatasetOptions& options);
  virtual ~Dataset() = default;

  virtual int64_t samples() const = 0;
  virtual int64_t documents() const = 0;
  virtual int64_t tokens() const = 0;          // in the files
  virtual const DatasetOptions& options() const = 0;
  virtual Result<SampleCounts> read(int64_t sample, const SampleView& out) const = 0;
  // Changes when any token, document bound or weight of the data does (sizes and XXH3 of headers and a bounded part of the data):
  // a resumed job says so when its data is not what it was.
  virtual uint64_t fingerprint() const = 0;
};

// Writes a token file in one go of appended documents, streaming: nothing of the model's or the corpus's size is kept but the offsets.
class TokenFileWriter {
 public:
  static Result<std::unique_ptr<TokenFileWriter>> create(const std::string& path, int64_t vocab_size, bool with_weights);
  virtual ~TokenFileWriter() = default;
  virtual Status add_document(std::span<const int32_t> tokens, std::span<const uint8_t> weights) = 0;
  virtual Status finish() = 0;  // without it nothing is left at `path`
};

}  // namespace amxt::io
