// The command amxtrain: libamxtrain from the shell. It uses the public header and nothing else of the
// library.
#include <fmt/format.h>
#include <string.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "commands.h"
#include "error_file.h"
#include "session.h"

namespace command {
namespace {

int fail(const Failure& failure) {
  show_bar("");
  if (failure.status() == AMXT_E_CANCELLED && signal_taken() != 0) {
    error_line(fmt::format("amxtrain: ended by {}", strsignal(signal_taken())));
    leave_reason(AMXT_E_CANCELLED, fmt::format("ended by {}", strsignal(signal_taken())));
    return 128 + signal_taken();
  }
  error_line(fmt::format("amxtrain: error: {}", failure.what()));
  leave_reason(failure.status(), failure.what());
  return failure.exit_code();
}

int usage_error(const std::string& message) {
  const std::string line = message.substr(0, message.find('\n'));
  error_line(fmt::format("amxtrain: error: {} (see --help)", line));
  leave_reason(AMXT_E_INVALID_ARGUMENT, line);
  return kUsage;
}

// The first word that should be a command and is none, as an error; CLI11 only says that one is missing.
std::optional<std::string> unknown_command(const CLI::App& app,
                                           const std::vector<std::string>& words) {
  const CLI::App* at = &app;
  std::string path;
  const auto listed = [&](const std::vector<const CLI::App*>& commands) {
    std::vector<std::string> names;
    for (const CLI::App* command : commands) names.push_back(path + command->get_name());
    return fmt::format("{}", fmt::join(names, ", "));
  };
  for (const std::string& word : words) {
    const std::vector<const CLI::App*> commands = at->get_subcommands([](const CLI::App* command) {
      return !command->get_name().empty();  // an option group has none
    });
    if (commands.empty() || word.starts_with('-')) return {};
    const auto found = std::find_if(commands.begin(), commands.end(), [&](const CLI::App* command) {
      return command->get_name() == word;
    });
    if (found == commands.end()) {
      return fmt::format("unknown command {}; the commands are {}", in_quotes(path + word),
                         listed(commands));
    }
    at = *found;
    path += word + ' ';
  }
  return {};
}

// "--lr: nan: must be 0 or more" becomes "--lr nan: must be 0 or more", as it was typed.
std::string as_typed(std::string message) {
  if (const size_t colon = message.find(": "); colon != std::string::npos) message.erase(colon, 1);
  return message;
}

int run(int argc, char** argv) {
  CLI::App app("Trains Llama-family language models on CPUs.", "amxtrain");
  app.set_version_flag("--version", fmt::format("amxtrain {}", amxt_version_string()));
  app.require_subcommand(1);
  app.footer("amxtrain COMMAND --help tells the options of a command.");

  using Add = Run (*)(CLI::App&);
  const Add adds[] = {add_info, add_init,   add_inspect, add_tokenize, add_plan, add_train,
                      add_eval, add_verify, add_launch,  add_bench,    add_topo};
  std::vector<std::pair<CLI::App*, Run>> commands;
  for (const Add add : adds) {
    Run command = add(app);
    commands.emplace_back(app.get_subcommands({}).back(), std::move(command));
  }

  // CLI11 takes the next word for the value.
  for (const std::string_view word : std::vector<std::string_view>(argv + 1, argv + argc)) {
    if (word == "--") break;
    if (word.starts_with("--") && word.ends_with('=')) {
      return usage_error(fmt::format("{} has no value behind the =", in_quotes(word)));
    }
  }

  try {
    if (const auto unknown = unknown_command(app, {argv + 1, argv + argc})) {
      return usage_error(*unknown);
    }
    app.parse(argc, argv);
  } catch (const CLI::ValidationError& error) {
    return usage_error(as_typed(error.what()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return usage_error(error.what());
  }
  for (const auto& [subcommand, command] : commands) {
    if (!subcommand->parsed()) continue;
    const int code = command();
    if (code != kSuccess || print_error() == 0) return code;
    throw Failure(fmt::format("standard output: {}", std::strerror(print_error())));
  }
  return kUsage;
}

}  // namespace
}  // namespace command

int main(int argc, char** argv) {
  // A limit on the size of files is an error of the write (EFBIG), with a line that says so.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return command::run(argc, argv);
  } catch (const command::Failure& failure) {
    return command::fail(failure);
  } catch (const std::exception& exception) {
    return command::fail(command::Failure(exception.what()));
  }
}
