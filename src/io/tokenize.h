// tokenize: text into a token file, a byte a token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace amxt::io {

struct TokenizeOptions {
  std::string out;  // ends in .safetensors
  // A text file is one document, whatever its bytes. Each line of a .jsonl file is one: {"text": ...},
  // or {"prompt": ..., "completion": ...}, whose prompt has loss weight 0. Other keys are passed
  // over, and so are blank lines.
  std::vector<std::string> paths;
  bool overwrite = false;
  // Called now and then with the bytes read so far and all there are; false cancels.
  std::function<bool(int64_t done, int64_t all)> progress;
};

struct TokenizeSummary {
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t masked = 0;  // tokens of prompts
};

inline constexpr int64_t kByteVocabulary = 256;
// Longer lines of a .jsonl file are refused: a line is the unit that has to be in memory.
inline constexpr int64_t kJsonLineLimit = 64 << 20;

// Reads in blocks; an error names the file, and the line of a .jsonl file. Nothing is at `out` until
// all is written and synced.
Result<TokenizeSummary> tokenize(const TokenizeOptions& options);

}  // namespace amxt::io
