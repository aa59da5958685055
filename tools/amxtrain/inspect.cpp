// amxtrain inspect: tensors, types, shapes, bytes and problems of a model directory or a file.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct InspectOptions {
  CommonOptions common;
  std::string path;
  bool scan = false;
  bool as_json = false;
};

// Of a damaged file or directory only what could be read is told, and said to be that.
void print_inspection(const Json& result, bool scan) {
  const bool complete = result.at("complete").get<bool>();
  const auto name = result.at("path").get<std::string>();
  if (result.at("files").empty()) {
    if (!complete || result.at("config").is_null()) return;
    return print_line(
        fmt::format("{}: no weights; config.json makes it {}", name,
                    counted(result.at("config").at("parameters").get<int64_t>(), "parameter")));
  }
  for (const Json& tensor : result.at("tensors")) {
    std::string line = fmt::format("{} {} {} {}", padded(tensor.at("name").get<std::string>(), 48),
                                   padded(tensor.at("dtype").get<std::string>(), 5),
                                   padded(tensor.at("shape").dump(), 16),
                                   padded_left(bytes_text(tensor.at("bytes").get<double>()), 10));
    if (scan && tensor.contains("nan")) {
      line += fmt::format("  nan {} inf {}", tensor.at("nan").dump(), tensor.at("inf").dump());
    }
    print_line(line);
  }
  const auto size = [&](const char* key) { return static_cast<int64_t>(result.at(key).size()); };
  print_line(fmt::format("{}: {}{} in {}, {}, {}", name, complete ? "" : "of what can be read: ",
                         counted(size("tensors"), "tensor"), counted(size("files"), "file"),
                         counted(result.at("parameters").get<int64_t>(), "parameter"),
                         bytes_text(result.at("bytes").get<double>())));
}

int run_inspect(const InspectOptions& options) {
  take_signals();
  const Session session(options.common);
  ItemProgress progress;
  amxt_inspect_options inspect = AMXT_INSPECT_OPTIONS_INIT;
  inspect.scan = options.scan ? 1 : 0;
  inspect.progress = ItemProgress::callback;
  inspect.progress_user_data = &progress;
  const Json result = json([&](char** out, amxt_error* error) {
    return amxt_inspect(session.runtime(), options.path.c_str(), &inspect, out, AMXT_FOREVER,
                        error);
  });
  if (options.as_json) {
    print_line(result.dump(2));
  } else {
    print_inspection(result, options.scan);
  }
  for (const Json& warning : result.at("warnings")) {
    error_line("amxtrain: warning: " + warning.get<std::string>());
  }
  const Json& problems = result.at("problems");
  if (problems.empty()) return kSuccess;
  for (size_t i = 1; i < problems.size(); ++i) {
    error_line("amxtrain: problem: " + problems[i].get<std::string>());
  }
  throw Failure(problems[0].get<std::string>());
}

}  // namespace

Run add_inspect(CLI::App& app) {
  CLI::App* inspect = app.add_subcommand("inspect", "Shows the tensors of a model or a file");
  auto options = std::make_shared<InspectOptions>();
  inspect->add_option("path", options->path, "A model directory or a safetensors file")->required();
  inspect->add_flag("--scan", options->scan, "Read all values and report infinite ones and NaN");
  inspect->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*inspect, options->common);
  return [options] { return run_inspect(*options); };
}

}  // namespace command
