// amxtrain tokenize: text to a token file, a byte a token.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct TokenizeOptions {
  CommonOptions common;
  std::string out;
  std::vector<std::string> paths;
  bool overwrite = false;
  bool as_json = false;
};

int run_tokenize(const TokenizeOptions& options) {
  take_signals();
  const Session session(options.common);
  std::vector<const char*> texts;
  for (const std::string& path : options.paths) texts.push_back(path.c_str());
  ItemProgress progress;
  amxt_tokenize_options tokenize = AMXT_TOKENIZE_OPTIONS_INIT;
  tokenize.overwrite = options.overwrite ? 1 : 0;
  tokenize.progress = ItemProgress::callback;
  tokenize.progress_user_data = &progress;
  const Json result = json([&](char** out, amxt_error* error) {
    return amxt_tokenize(session.runtime(), options.out.c_str(), texts.data(),
                         static_cast<int64_t>(texts.size()), &tokenize, out, AMXT_FOREVER, error);
  });
  show_bar("");
  if (options.as_json) {
    print_line(result.dump(2));
    return kSuccess;
  }
  auto count = [&](const char* key) { return result.at(key).get<int64_t>(); };
  print_line(fmt::format("{}: {}, {}, {} of them masked", options.out,
                         counted(count("documents"), "document"), counted(count("tokens"), "token"),
                         count_text(count("masked_tokens"))));
  return kSuccess;
}

}  // namespace

Run add_tokenize(CLI::App& app) {
  CLI::App* tokenize = app.add_subcommand("tokenize", "Makes a token file of text, a byte a token");
  auto options = std::make_shared<TokenizeOptions>();
  tokenize->add_option("--out", options->out, "Token file to write (.safetensors)")
      ->required()
      ->transform(CLI::Validator(
          [](std::string& name) {
            return name.ends_with(".safetensors")
                       ? std::string()
                       : name + ": a token file's name ends in .safetensors";
          },
          ""));
  tokenize
      ->add_option(
          "paths", options->paths,
          "Text files, a document each; or .jsonl files, a document a line, with \"text\", "
          "or \"prompt\" (masked) and \"completion\"")
      ->required();
  tokenize->add_flag("--overwrite", options->overwrite, "Replace a file that is there");
  tokenize->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*tokenize, options->common);
  return [options] { return run_tokenize(*options); };
}

}  // namespace command
