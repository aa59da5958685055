// amxtrain verify: reads a checkpoint back whole.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "options.h"

namespace command {

namespace {

struct VerifyOptions {
  CommonOptions common;
  std::string path;
  bool as_json = false;
};

int run_verify(const VerifyOptions& options) {
  take_signals();
  const Session session(options.common);
  Json info = json([&](char** out, amxt_error* error) {
    return amxt_checkpoint_info(session.runtime(), options.path.c_str(), out, error);
  });
  ItemProgress progress;
  const double begin = now();
  call([&](amxt_error* error) {
    return amxt_checkpoint_verify(session.runtime(), options.path.c_str(), ItemProgress::callback,
                                  &progress, AMXT_FOREVER, error);
  });
  const double seconds = now() - begin;
  if (options.as_json) {
    info["valid"] = true;
    info["seconds"] = seconds;
    print_line(info.dump(2));
  } else {
    print_line(fmt::format("{}: step {}, {}, {}: every byte is as written ({:.1f} s)",
                           info.at("path").get<std::string>(), info.at("step").dump(),
                           counted(static_cast<int64_t>(info.at("files").size()), "file"),
                           bytes_text(info.at("bytes").get<double>()), seconds));
  }
  return kSuccess;
}

}  // namespace

Run add_verify(CLI::App& app) {
  CLI::App* verify = app.add_subcommand("verify", "Reads a checkpoint back whole");
  auto options = std::make_shared<VerifyOptions>();
  verify->add_option("checkpoint", options->path, "A checkpoint, or a directory of them")
      ->required();
  verify->add_flag("--json", options->as_json, "Print JSON");
  add_common_options(*verify, options->common);
  return [options] { return run_verify(*options); };
}

}  // namespace command
