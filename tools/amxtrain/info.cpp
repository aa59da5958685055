// amxtrain info: the CPU, the instruction set chosen and why, the limits, the versions; with --launch, what the launcher's variables say.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "options.h"
#include "session.h"

namespace command {

namespace {

void row(std::string_view name, const std::string& value) {
  print_line(fmt::format("{} {}", padded(name, 18), value));
}

std::string text_or(const Json& value, const std::string& other) {
  if (value.is_string()) return value.get<std::string>();
  return value.is_null() ? other : value.dump();
}

void print_info(const Json& build, const Json& cpu) {
  row("amxtrain",
      fmt::format("{} (commit {}, {}, {})", amxt_version_string(),
                  text_or(build.at("commit"), "unknown"), text_or(build.at("compiler"), "?"),
                  text_or(build.at("build_type"), "?")));
  if (cpu.contains("error")) throw Failure(cpu.at("error").get<std::string>());
  row("processor", text_or(cpu.at("model_name"), "unknown"));
  const std::string reason = text_or(cpu.at("isa_reason"), "");
  row("instruction set", fmt::format("{}{}", text_or(cpu.at("isa"), "?"),
                                     reason.empty() ? "" : fmt::format(" ({})", reason)));
  row("processors",
      fmt::format("{} in the affinity mask{}", cpu.at("affinity").size(),
                  cpu.at("cgroup_cpus").is_null()
                      ? ""
                      : fmt::format(", {} by the cgroup", cpu.at("cgroup_cpus").dump())));
  row("threads",
      fmt::format("{} ({})", cpu.at("threads").dump(), text_or(cpu.at("threads_reason"), "")));
  row("memory",
      fmt::format("{} of {} available{}",
                  bytes_text(cpu.at("memory_available_bytes").get<double>()),
                  bytes_text(cpu.at("memory_bytes").get<double>()),
                  cpu.at("cgroup_memory_bytes").is_null()
                      ? ""
                      : fmt::format(", limited to {} by the cgroup",
                                    bytes_text(cpu.at("cgroup_memory_bytes").get<double>()))));
  for (const auto& [name, version] : build.at("libraries").items()) {
    row(name, text_or(version, "not found"));
  }
  for (const auto& [name, library] : build.at("optional").items()) {
    row(name, library.at("found") == true
                  ? text_or(library.at("version"), "unknown version")
                  : fmt::format("not found ({})", text_or(library.at("reason"), "?")));
  }
}

void print_launch(const Json& info) {
  for (const Json& set : info.at("found")) {
    std::string seen;
    for (const auto& [name, value] : set.at("variables").items()) {
      seen += fmt::format("{}{}{}", seen.empty() ? "" : ", ", name,
                          value.is_null() ? " unset" : "=" + in_quotes(value.get<std::string>()));
    }
    row("found", fmt::format("{}: {}", text_or(set.at("launcher"), "?"), seen));
  }
  if (info.at("found").empty()) row("found", "no launcher's variables");
  const Json& launch = info.at("launch");
  if (launch.is_null()) return;
  row("chosen",
      fmt::format("{} ({})", text_or(launch.at("launcher"), launch.at("source").get<std::string>()),
                  text_or(launch.at("reason"), "")));
  row("rank", fmt::format("{} of {}", launch.at("rank").dump(), launch.at("world_size").dump()));
  row("local rank",
      fmt::format("{} of {}", launch.at("local_rank").dump(), launch.at("local_size").dump()));
  if (!launch.at("address").is_null()) {
    row("address",
        fmt::format("{} port {}{}", text_or(launch.at("address"), ""), launch.at("port").dump(),
                    launch.at("agent_store") == true ? ", served by torchrun" : ""));
  }
  if (!launch.at("node_hint").is_null()) row("node", text_or(launch.at("node_hint"), ""));
  for (const Json& note : launch.at("notes")) row("note", text_or(note, ""));
}

}  // namespace

Run add_info(CLI::App& app) {
  CLI::App* info = app.add_subcommand("info", "Tells what this machine can do");
  auto as_json = std::make_shared<bool>(false);
  info->add_flag("--json", *as_json, "Print JSON");
  auto launch = std::make_shared<bool>(false);
  info->add_flag("--launch", *launch,
                 "Print who this process is to its launcher, and why, instead");
  return [as_json, launch] {
    if (*launch) {
      const Json found =
          json([](char** raw, amxt_error* error) { return amxt_launch_info(nullptr, raw, error); });
      if (*as_json) {
        print_line(found.dump(2));
      } else {
        print_launch(found);
      }
      if (found.contains("error")) throw Failure(found.at("error").get<std::string>());
      return kSuccess;
    }
    const Json build = Json::parse(amxt_build_info());
    const Json cpu = Json::parse(amxt_cpu_info());
    if (*as_json) {
      print_line(Json{{"build", build}, {"cpu", cpu}}.dump(2));
    } else {
      print_info(build, cpu);
    }
    return kSuccess;
  };
}

}  // namespace command
