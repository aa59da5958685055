// amxtrain topo: what ranks that talk to each other find on this machine: NUMA nodes, interfaces, GPUs, and the way between each two.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "commands.h"
#include "session.h"

namespace command {

namespace {

constexpr size_t kNames = 16;  // width of the first column

void row(std::string_view name, const std::string& value) {
  print_line(fmt::format("{} {}", padded(name, kNames), value));
}

std::string text_or(const Json& value, std::string_view other) {
  return value.is_null() ? std::string(other) : value.get<std::string>();
}

// ", text" for one that is there.
std::string with(const Json& value, std::string_view before, std::string_view behind = "") {
  if (value.is_null()) return "";
  return fmt::format(", {}{}{}", before,
                     value.is_string() ? value.get<std::string>() : value.dump(), behind);
}

std::string size_of(const Json& bytes) { return bytes_text(bytes.get<double>()); }

std::string speed_of(const Json& megabits) {
  if (megabits.is_null()) return "speed unknown";
  const int64_t value = megabits.get<int64_t>();
  if (value % 1000 == 0) return fmt::format("{} Gbit/s", value / 1000);
  return fmt::format("{} Mbit/s", value);
}

void print_machine(const Json& topology) {
  const Json& machine = topology.at("machine");
  row("machine", fmt::format("{}, {}, {}{}", text_or(machine.at("processor"), "unknown processor"),
                             counted(machine.at("cores").get<int64_t>(), "core"),
                             counted(machine.at("processors").get<int64_t>(), "processor"),
                             machine.at("virtual") == true ? ", virtual" : ""));
  for (const Json& node : topology.at("numa_nodes")) {
    row(fmt::format("NUMA node {}", node.at("node").dump()),
        fmt::format("{}, processors {}, {} ({} free)",
                    counted(node.at("cores").get<int64_t>(), "core"),
                    text_or(node.at("processors"), ""), size_of(node.at("memory_bytes")),
                    size_of(node.at("free_bytes"))));
  }
}

void print_interfaces(const Json& topology) {
  for (const Json& interface : topology.at("interfaces")) {
    std::string addresses;
    for (const Json& address : interface.at("addresses")) {
      addresses += address.get<std::string>() + ", ";
    }
    row(text_or(interface.at("name"), ""),
        fmt::format("{}{}, MTU {}, {}{}{}{}", addresses,
                    speed_of(interface.at("megabits_per_second")), interface.at("mtu").dump(),
                    text_or(interface.at("state"), "state unknown"),
                    with(interface.at("driver"), ""), with(interface.at("numa_node"), "NUMA node "),
                    interface.at("chosen") == true
                        ? fmt::format(", chosen ({})", text_or(interface.at("reason"), ""))
                        : ""));
  }
  // Many of a kind, such as 32 EFA devices, are one line.
  std::map<std::string, std::vector<std::string>> kinds;
  std::vector<std::string> order;
  for (const Json& device : topology.at("rdma_devices")) {
    const Json& rate = device.at("gigabits_per_second");
    const std::string kind = fmt::format(
        "{}{}, {}{}{}",
        device.at("efa") == true ? "EFA" : text_or(device.at("driver"), "no driver"),
        rate.is_null() ? "" : fmt::format(", {:g} Gbit/s", rate.get<double>()),
        text_or(device.at("state"), "state unknown"), with(device.at("numa_node"), "NUMA node "),
        device.at("usable") == true ? "" : ", not usable here");
    if (!kinds.contains(kind)) order.push_back(kind);
    kinds[kind].push_back(text_or(device.at("name"), ""));
  }
  for (const std::string& kind : order) {
    const std::vector<std::string>& names = kinds[kind];
    row("RDMA", names.size() > 4 ? fmt::format("{} devices, {} to {}: {}", names.size(),
                                               names.front(), names.back(), kind)
                                 : fmt::format("{}: {}", fmt::join(names, ", "), kind));
  }
  if (order.empty()) row("RDMA", "no devices");
}

void print_limits(const Json& topology) {
  const Json& limits = topology.at("limits");
  row("locked memory", limits.at("locked_memory_bytes").is_null()
                           ? "unlimited"
                           : size_of(limits.at("locked_memory_bytes")));
  row("/dev/shm", limits.at("dev_shm_bytes").is_null()
                      ? "not there"
                      : fmt::format("{} ({} free)", size_of(limits.at("dev_shm_bytes")),
                                    size_of(limits.at("dev_shm_free_bytes"))));
  if (limits.at("own_ipc_namespace") == true) row("IPC", "a namespace of its own");
}

void print_driver(const Json& topology) {
  const Json& nccl = topology.at("nccl");
  row("NCCL", text_or(nccl.at(nccl.at("found") == true ? "version" : "reason"), "not found"));
  const Json& nvml = topology.at("nvml");
  row("NVIDIA driver",
      nvml.at("found") == true
          ? fmt::format("{}, NVML {}{}", text_or(nvml.at("driver_version"), "unknown"),
                        text_or(nvml.at("version"), "unknown"), with(nvml.at("reason"), ""))
          : text_or(nvml.at("reason"), "none"));
  if (nvml.at("found") == true && !nvml.at("missing_functions").empty()) {
    std::string names;
    for (const Json& name : nvml.at("missing_functions")) {
      names += (names.empty() ? "" : ", ") + name.get<std::string>();
    }
    row("", fmt::format("too old for {}", names));
  }
  const Json& gpus = topology.at("gpus");
  if (nvml.at("found") == true && gpus.empty()) row("GPUs", "none");
}

void print_gpus(const Json& topology) {
  for (const Json& gpu : topology.at("gpus")) {
    const std::string name = fmt::format("GPU{}", gpu.at("index").dump());
    if (!gpu.at("fault").is_null()) {
      row(name, fmt::format("{}{}: {}", text_or(gpu.at("name"), "unknown"),
                            with(gpu.at("bus_id"), ""), text_or(gpu.at("fault"), "")));
      continue;
    }
    const bool has_pcie = !gpu.at("pcie_generation").is_null();
    const int64_t links = gpu.at("nvlinks").get<int64_t>();
    row(name,
        fmt::format("{}{}{}{}{}{}", text_or(gpu.at("name"), "unknown"),
                    gpu.at("memory_bytes").is_null() ? "" : ", " + size_of(gpu.at("memory_bytes")),
                    with(gpu.at("bus_id"), ""),
                    has_pcie ? fmt::format(", PCIe {} x{}", gpu.at("pcie_generation").dump(),
                                           gpu.at("pcie_width").dump())
                             : "",
                    links > 0 ? ", " + counted(links, "NVLink") : "",
                    gpu.at("mig") == true ? ", MIG" : ""));
  }
}

void print_matrix(const Json& topology) {
  const Json& gpus = topology.at("gpus");
  if (gpus.empty()) return;
  constexpr size_t kColumn = 7;
  std::string heading(6, ' ');
  for (size_t b = 0; b < gpus.size(); ++b) heading += padded(fmt::format("GPU{}", b), kColumn);
  std::vector<std::string> affinities;
  size_t width = std::string_view("CPU affinity").size();
  for (const Json& gpu : gpus) {
    affinities.push_back(text_or(gpu.at("cpu_affinity"), "N/A"));
    width = std::max(width, affinities.back().size());
  }
  width += 2;
  print_line("");
  print_line(heading + padded("CPU affinity", width) + "NUMA affinity");
  for (size_t a = 0; a < gpus.size(); ++a) {
    std::string line = padded(fmt::format("GPU{}", a), 6);
    for (const Json& code : topology.at("matrix").at(a)) {
      const std::string text = code.get<std::string>();
      line += padded(text == "X" ? " X" : text, kColumn);
    }
    line += padded(affinities[a], width) + text_or(gpus.at(a).at("numa_affinity"), "N/A");
    print_line(line);
  }
}

std::string rate_text(const Json& gigabytes) {
  return gigabytes.is_null() ? "" : fmt::format(", {:.1f} GB/s each way", gigabytes.get<double>());
}

std::string way_of(const Json& pair) {
  const std::string transport = pair.at("transport").get<std::string>();
  const std::string over = text_or(pair.at("over"), "");
  std::string way = transport == "p2p"             ? "P2P over " + over
                    : transport == "shared_memory" ? "shared memory of the host, over " + over
                    : transport == "network"       ? "network"
                                                   : "none";
  way += rate_text(pair.at("gigabytes_per_second"));
  if (!pair.at("reason").is_null()) way += fmt::format(" ({})", text_or(pair.at("reason"), ""));
  return way;
}

void print_paths(const Json& topology) {
  // Pairs that take the same way are one line.
  std::map<std::string, std::vector<std::string>> same;
  std::vector<std::string> order;
  for (const Json& pair : topology.at("pairs")) {
    const std::string way = padded(text_or(pair.at("path"), "?"), 5) + " " + way_of(pair);
    if (!same.contains(way)) order.push_back(way);
    same[way].push_back(fmt::format("{}-{}", pair.at("a").dump(), pair.at("b").dump()));
  }
  if (!order.empty()) print_line("");
  for (const std::string& way : order) {
    const std::vector<std::string>& pairs = same[way];
    const size_t all = topology.at("pairs").size();
    const std::string which = pairs.size() == all && all > 1 ? fmt::format("all {} pairs", all)
                              : pairs.size() > 4
                                  ? fmt::format("{} and {} more", pairs.front(), pairs.size() - 1)
                                  : fmt::format("{}", fmt::join(pairs, ", "));
    print_line(fmt::format("{}: {}", way, which));
  }
  const Json& hosts = topology.at("between_hosts");
  print_line("");
  row("between hosts",
      hosts.at("rdma") == true
          ? fmt::format("network with RDMA, {}{}",
                        counted(hosts.at("devices").get<int64_t>(), "device"),
                        rate_text(hosts.at("gigabytes_per_second")))
          : fmt::format("network without RDMA{}{}", with(hosts.at("interface"), ""),
                        rate_text(hosts.at("gigabytes_per_second"))));
}

void print_settings(const Json& topology) {
  for (const auto& [name, value] : topology.at("environment").items()) {
    row("set", fmt::format("{}={}", name, in_quotes(value.get<std::string>())));
  }
  for (const Json& warning : topology.at("warnings")) {
    row("warning", text_or(warning.at("message"), ""));
  }
}

}  // namespace

Run add_topo(CLI::App& app) {
  CLI::App* topo = app.add_subcommand(
      "topo", "Shows NUMA nodes, interfaces and GPUs, and the way between each two");
  auto as_json = std::make_shared<bool>(false);
  topo->add_flag("--json", *as_json, "Print JSON");
  return [as_json] {
    const Json topology =
        json([](char** raw, amxt_error* error) { return amxt_topology(raw, error); });
    if (*as_json) {
      print_line(topology.dump(2));
      return kSuccess;
    }
    print_machine(topology);
    print_interfaces(topology);
    print_limits(topology);
    print_driver(topology);
    print_gpus(topology);
    print_matrix(topology);
    print_paths(topology);
    print_settings(topology);
    return kSuccess;
  };
}

}  // namespace command
