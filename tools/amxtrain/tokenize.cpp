// amxtrain tokenize: text to a token file, a byte a token. A text file is one document; a line of a JSONL
// file is one: {"text": ...}, or {"prompt": ..., "completion": ...}, of which the prompt is not learned.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct TokenizeOptions {
  CommonOptions common;
  std::string out;
  std::vector<std::string> paths;
  bool as_json = false;
};

struct Counts {
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t learned = 0;
};

constexpr int64_t kByteVocabulary = 256;

bool is_jsonl(const std::string& path) {
  return path.ends_with(".jsonl") || path.ends_with(".ndjson");
}

std::ifstream open_text(const std::string& path) {
  if (std::filesystem::is_directory(path)) throw Failure(in_quotes(path) + ": is a directory");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) throw Failure(fmt::format("{}: {}", in_quotes(path), std::strerror(errno)));
  return file;
}

// A document under way: bytes and whether each is to be learned.
class Document {
 public:
  void append(const std::string& text, bool learned) {
    for (const char c : text) tokens_.push_back(static_cast<unsigned char>(c));
    weights_.insert(weights_.end(), text.size(), learned ? 1 : 0);
    if (learned) learned_ += static_cast<int64_t>(text.size());
  }

  void write_to(amxt_token_writer* writer, bool with_weights, Counts& counts) {
    const auto count = static_cast<int64_t>(tokens_.size());
    call([&](amxt_error* error) {
      return amxt_token_writer_add(writer, tokens_.data(), with_weights ? weights_.data() : nullptr,
                                   count, error);
    });
    ++counts.documents;
    counts.tokens += count;
    counts.learned += learned_;
    tokens_.clear();
    weights_.clear();
    learned_ = 0;
  }

 private:
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> weights_;
  int64_t learned_ = 0;
};

std::string text_of(const Json& line, const char* key, const std::string& where) {
  const auto value = line.find(key);
  if (value == line.end()) throw Failure(fmt::format("{}: key '{}' is missing", where, key));
  if (!value->is_string()) throw Failure(fmt::format("{}: key '{}' is not a string", where, key));
  return value->get<std::string>();
}

void read_jsonl(const std::string& path, Document& document, amxt_token_writer* writer,
                Counts& counts) {
  std::ifstream file = open_text(path);
  std::string text;
  for (int64_t number = 1; std::getline(file, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}, line {}", in_quotes(path), number);
    const Json line = Json::parse(text, nullptr, false);
    if (line.is_discarded() || !line.is_object()) throw Failure(where + ": not a JSON object");
    if (line.contains("prompt") || line.contains("completion")) {
      document.append(text_of(line, "prompt", where), false);
      document.append(text_of(line, "completion", where), true);
    } else {
      document.append(text_of(line, "text", where), true);
    }
    document.write_to(writer, true, counts);
    if (signal_taken() != 0) throw Failure::interrupted();
  }
  if (file.bad()) throw Failure(fmt::format("{}: {}", in_quotes(path), std::strerror(errno)));
}

void read_text(const std::string& path, bool with_weights, Document& document,
               amxt_token_writer* writer, Counts& counts) {
  std::ifstream file = open_text(path);
  std::string block(1 << 20, '\0');
  for (;;) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    document.append(block.substr(0, static_cast<size_t>(file.gcount())), true);
    if (!file) break;
    if (signal_taken() != 0) throw Failure::interrupted();
  }
  if (file.bad()) throw Failure(fmt::format("{}: {}", in_quotes(path), std::strerror(errno)));
  document.write_to(writer, with_weights, counts);
}

int run_tokenize(const TokenizeOptions& options) {
  take_signals();
  const Session session(options.common);
  bool with_weights = false;
  for (const std::string& path : options.paths) with_weights |= is_jsonl(path);

  amxt_token_writer_options writer_options = AMXT_TOKEN_WRITER_OPTIONS_INIT;
  writer_options.loss_weights = with_weights ? 1 : 0;
  writer_options.vocab_size = kByteVocabulary;
  const TokenWriter writer = make<TokenWriter>([&](amxt_token_writer** out, amxt_error* error) {
    return amxt_token_writer_open(session.runtime(), options.out.c_str(), &writer_options, out,
                                  error);
  });
  Counts counts;
  Document document;
  for (const std::string& path : options.paths) {
    if (is_jsonl(path)) {
      read_jsonl(path, document, writer.get(), counts);
    } else {
      read_text(path, with_weights, document, writer.get(), counts);
    }
  }
  if (counts.documents == 0) throw Failure("no document in " + in_quotes(options.paths.front()));
  call([&](amxt_error* error) { return amxt_token_writer_finish(writer.get(), error); });

  if (options.as_json) {
    print_line(Json{{"path", options.out},
                    {"documents", counts.documents},
                    {"tokens", counts.tokens},
                    {"learned_tokens", counts.learned},
                    {"vocab_size", kByteVocabulary}}
                   .dump(2));
  } else {
    print_line(fmt::format("{}: {} documents, {} tokens, {} of them learned", options.out,
                           count_text(counts.documents), count_text(counts.tokens),
                           count_text(counts.learned)));
  }
  return kSuccess;
}

}  // namespace

Run add_tokenize(CLI::App& app) {
  CLI::App* tokenize = app.add_subcommand("tokenize", "Makes a token file of text, a byte a token");
  auto options = std::make_shared<TokenizeOptions>();
  tokenize->add_option("--out", options->out, "Token file to write (.safetensors)")->required();
  tokenize
      ->add_option("paths", options->paths,
                   "Text files (a document each), or .jsonl with text, or prompt and completion")
      ->required();
  tokenize->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*tokenize, options->common);
  return [options] { return run_tokenize(*options); };
}

}  // namespace command
