// The commands: each adds its subcommand with its options and gives what runs it, called after parsing;
// the result is the exit code.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace command {

using Run = std::function<int()>;

Run add_info(CLI::App& app);
Run add_init(CLI::App& app);
Run add_inspect(CLI::App& app);
Run add_tokenize(CLI::App& app);
Run add_plan(CLI::App& app);
Run add_train(CLI::App& app);
Run add_eval(CLI::App& app);
Run add_verify(CLI::App& app);
Run add_launch(CLI::App& app);
Run add_bench(CLI::App& app);
Run add_topo(CLI::App& app);

}  // namespace command
