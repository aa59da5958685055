#include "io/dataset.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <limits>

#include "base/text.h"
#include "io/token_file.h"

namespace amxt::io {
namespace {

// The files laid end to end; shared by all ways of cutting them.
struct Corpus {
  std::vector<std::unique_ptr<TokenFile>> files;
  std::vector<int64_t> token_begin;     // of each file, and the sum behind the last
  std::vector<int64_t> document_begin;  // the same of documents
  uint64_t fingerprint = 0;
  int32_t largest_token = -1;
  bool has_loss_weight = false;

  int64_t tokens() const { return token_begin.back(); }
  int64_t documents() const { return document_begin.back(); }
};

// The file whose part of `begins` holds `at`; empty files are skipped.
size_t file_of(const std::vector<int64_t>& begins, int64_t at) {
  const auto behind = std::upper_bound(begins.begin(), begins.end(), at);
  return static_cast<size_t>(behind - begins.begin()) - 1;
}

Result<std::shared_ptr<const Corpus>> open_corpus(const DatasetOptions& options) {
  if (options.paths.empty()) return Error(Code::kInvalidArgument, "no data file");
  const TokenFileOptions file_options{options.vocab_size, options.separator,
                                      options.bin_token_bytes};
  auto corpus = std::make_shared<Corpus>();
  corpus->token_begin = {0};
  corpus->document_begin = {0};
  std::vector<uint64_t> fingerprints;
  for (const std::string& path : options.paths) {
    AMXT_ASSIGN(std::unique_ptr<TokenFile> file, TokenFile::open(path, file_options));
    const TokenFileFacts& facts = file->facts();
    if (facts.tokens > std::numeric_limits<int64_t>::max() - corpus->tokens()) {
      return Error(Code::kLimit, fmt::format("{}: more tokens than 63 bits count", quote(path)));
    }
    corpus->token_begin.push_back(corpus->tokens() + facts.tokens);
    corpus->document_begin.push_back(corpus->documents() + facts.documents);
    corpus->largest_token = std::max(corpus->largest_token, facts.largest_token);
    corpus->has_loss_weight |= facts.has_loss_weight;
    fingerprints.push_back(facts.fingerprint);
    corpus->files.push_back(std::move(file));
  }
  corpus->fingerprint = XXH3_64bits(fingerprints.data(), fingerprints.size() * sizeof(uint64_t));
  return std::shared_ptr<const Corpus>(std::move(corpus));
}

class CutCorpus final : public Dataset {
 public:
  CutCorpus(std::shared_ptr<const Corpus> corpus, DatasetOptions options)
      : corpus_(std::move(corpus)), options_(std::move(options)) {}

  static Result<std::unique_ptr<Dataset>> cut(std::shared_ptr<const Corpus> corpus,
                                              DatasetOptions options) {
    const int64_t length = options.sequence_length;
    if (length < 0 || length > int64_t{1} << 31) {
      return Error(Code::kInvalidArgument, fmt::format("sequence_length {}: must be from 1 to {}",
                                                       length, int64_t{1} << 31));
    }
    if (corpus->tokens() == 0) {
      return Error(Code::kFormat,
                   fmt::format("{}: {} without a token", quote(options.paths.front()),
                               counted(corpus->documents(), "document")));
    }
    return std::unique_ptr<Dataset>(
        std::make_unique<CutCorpus>(std::move(corpus), std::move(options)));
  }

  int64_t samples() const override {
    if (options_.mode == PackMode::kPad) return corpus_->documents();
    const int64_t length = options_.sequence_length;
    if (length == 0) return 0;
    return corpus_->tokens() / length + (corpus_->tokens() % length != 0);
  }
  int64_t documents() const override { return corpus_->documents(); }
  int64_t tokens() const override { return corpus_->tokens(); }
  const DatasetOptions& options() const override { return options_; }
  uint64_t fingerprint() const override { return corpus_->fingerprint; }
  int32_t largest_token() const override { return corpus_->largest_token; }
  bool has_loss_weight() const override { return corpus_->has_loss_weight; }

  Result<std::unique_ptr<Dataset>> at(int64_t sequence_length, PackMode mode) const override {
    if (sequence_length < 1) {
      return Error(Code::kInvalidArgument,
                   fmt::format("sequence_length {}: must be 1 or more", sequence_length));
    }
    DatasetOptions options = options_;
    options.sequence_length = sequence_length;
    options.mode = mode;
    return cut(corpus_, std::move(options));
  }

  Result<SampleCounts> read(int64_t sample, const SampleView& out) const override {
    AMXT_TRY(check_arguments(sample, out));
    std::vector<uint8_t> starts(out.token.size());
    Result<size_t> length = options_.mode == PackMode::kPack ? read_packed(sample, out, starts)
                                                             : read_document(sample, out, starts);
    if (!length) return std::move(length).error();
    return finish(out, starts, *length);
  }

 private:
  Status check_arguments(int64_t sample, const SampleView& out) const {
    const int64_t length = options_.sequence_length;
    if (length == 0) return Error(Code::kInvalidState, "the data set has no sequence_length yet");
    if (sample < 0 || sample >= samples()) {
      return Error(Code::kInvalidArgument,
                   fmt::format("sample {}: there are {}", sample, samples()));
    }
    for (const size_t size : {out.token.size(), out.target.size(), out.document_start.size(),
                              out.position.size(), out.weight.size()}) {
      if (static_cast<int64_t>(size) != length) {
        return Error(
            Code::kInvalidArgument,
            fmt::format("sample {}: an array of {} for a length of {}", sample, size, length));
      }
    }
    return {};
  }

  // Fills tokens, loss weights (of the tokens themselves) and starts from position `begin` of a
  // file; the first position of a piece counts as the start of a document.
  static Status read_piece(const TokenFile& file, int64_t begin, const SampleView& out,
                           std::span<uint8_t> starts, size_t at, size_t count) {
    const auto tokens = out.token.subspan(at, count);
    AMXT_TRY(file.read_tokens(begin, tokens));
    AMXT_TRY(file.read_weights(begin, out.weight.subspan(at, count)));
    AMXT_TRY(file.mark_starts(begin, tokens, starts.subspan(at, count)));
    starts[at] = 1;
    return {};
  }

  // Positions sample * T and on of all files; returns how many there are.
  Result<size_t> read_packed(int64_t sample, const SampleView& out,
                             std::span<uint8_t> starts) const {
    const int64_t begin = sample * options_.sequence_length;
    const int64_t end = begin + std::min(options_.sequence_length, corpus_->tokens() - begin);
    for (int64_t at = begin; at < end;) {
      const size_t i = file_of(corpus_->token_begin, at);
      const int64_t piece_end = std::min(end, corpus_->token_begin[i + 1]);
      AMXT_TRY(read_piece(*corpus_->files[i], at - corpus_->token_begin[i], out, starts,
                          static_cast<size_t>(at - begin), static_cast<size_t>(piece_end - at)));
      at = piece_end;
    }
    return static_cast<size_t>(end - begin);
  }

  // A whole document, cut at T.
  Result<size_t> read_document(int64_t sample, const SampleView& out,
                               std::span<uint8_t> starts) const {
    const size_t i = file_of(corpus_->document_begin, sample);
    const TokenFile& file = *corpus_->files[i];
    const int64_t document = sample - corpus_->document_begin[i];
    AMXT_ASSIGN(const int64_t begin, file.document_begin(document));
    AMXT_ASSIGN(const int64_t end, file.document_begin(document + 1));
    if (end < begin) {
      return Error(Code::kFormat,
                   fmt::format("{}: document {} ends before it begins: the file was changed after "
                               "it was opened",
                               quote(file.path()), document));
    }
    const int64_t length = std::min(end - begin, options_.sequence_length);
    if (length == 0) return size_t{0};
    AMXT_TRY(read_piece(file, begin, out, starts, 0, static_cast<size_t>(length)));
    std::fill(starts.begin() + 1, starts.end(), uint8_t{0});
    return static_cast<size_t>(length);
  }

  // Targets, places and padding, from the tokens, their own weights and the starts.
  static SampleCounts finish(const SampleView& out, std::span<const uint8_t> starts,
                             size_t length) {
    SampleCounts counts;
    counts.tokens = static_cast<int64_t>(length);
    int32_t start = 0;
    for (size_t t = 0; t < length; ++t) {
      if (starts[t] != 0) start = static_cast<int32_t>(t);
      out.document_start[t] = start;
      out.position[t] = static_cast<int32_t>(t) - start;
      const bool has_target = t + 1 < length && starts[t + 1] == 0;
      out.target[t] = has_target ? out.token[t + 1] : kNoTarget;
      out.weight[t] = has_target ? out.weight[t + 1] : 0;
      counts.counted += out.weight[t] != 0;
      counts.weight += static_cast<double>(out.weight[t]);
    }
    for (size_t t = length; t < out.token.size(); ++t) {
      out.token[t] = 0;
      out.target[t] = kNoTarget;
      out.document_start[t] = static_cast<int32_t>(t);
      out.position[t] = 0;
      out.weight[t] = 0;
    }
    return counts;
  }

  std::shared_ptr<const Corpus> corpus_;
  DatasetOptions options_;
};

}  // namespace

Result<std::unique_ptr<Dataset>> Dataset::open(const DatasetOptions& options) {
  if (options.vocab_size < 0 || options.vocab_size > int64_t{1} << 31) {
    return Error(Code::kInvalidArgument, fmt::format("vocab_size {}: must be from 1 to {}",
                                                     options.vocab_size, int64_t{1} << 31));
  }
  // A token file has bounds of its own: there the model's eos, whatever it is, does no harm.
  const bool has_stream =
      std::any_of(options.paths.begin(), options.paths.end(),
                  [](const std::string& path) { return !path.ends_with(".safetensors"); });
  if (has_stream && options.separator && options.vocab_size > 0 &&
      (*options.separator < 0 || *options.separator >= options.vocab_size)) {
    return Error(Code::kInvalidArgument,
                 fmt::format("separator {}: not a token id of a vocabulary of {}",
                             *options.separator, options.vocab_size));
  }
  AMXT_ASSIGN(std::shared_ptr<const Corpus> corpus, open_corpus(options));
  return CutCorpus::cut(std::move(corpus), options);
}

}  // namespace amxt::io
