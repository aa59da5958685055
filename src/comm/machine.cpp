#include "comm/machine.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <string_view>

#include "base/file.h"
#include "comm/interfaces.h"
#include "comm/socket.h"

namespace amxt::comm {
namespace {

// The kernel's number of the first IPC namespace (PROC_IPC_INIT_INO of include/linux/proc_ns.h).
constexpr std::string_view kFirstIpcNamespace = "ipc:[4026531839]";

// The first bytes of a file, without white space at the end; empty when it can't be read. Files of /sys and /proc have no size.
std::string text_of(const std::string& path) {
  constexpr size_t kMost = 1 << 20;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char buffer[4096];
  while (text.size() < kMost && (file.read(buffer, sizeof buffer), file.gcount() > 0)) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
  }
  while (!text.empty() && static_cast<unsigned char>(text.back()) <= ' ') text.pop_back();
  return text;
}

std::optional<int64_t> number_of(const std::string& text, int base = 10) {
  std::string_view digits = text;
  if (base == 16 && digits.starts_with("0x")) digits.remove_prefix(2);
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end == digits.data()) return std::nullopt;
  return value;
}

std::optional<int64_t> number_at(const std::string& path, int base = 10) {
  return number_of(text_of(path), base);
}

// Where a device hangs; the kernel writes -1 for "no node known".
std::optional<int> numa_node_at(const std::string& path) {
  const auto node = number_at(path);
  if (!node || *node < 0 || *node > INT_MAX) return std::nullopt;
  return static_cast<int>(*node);
}

// "eth2" before "eth10".
bool in_order(const std::string& a, const std::string& b) {
  return strverscmp(a.c_str(), b.c_str()) < 0;
}

std::vector<std::string> names_in(const std::string& directory) {
  auto found = list_directory(directory);
  std::vector<std::string> names;
  if (found) names = std::move(found).value();
  std::sort(names.begin(), names.end(), in_order);
  return names;
}

std::string link_name(const std::string& path) {
  const auto target = read_symlink(path);
  return target ? base_name(*target) : "";
}

std::string value_after(const std::string& text, std::string_view key) {
  const size_t at = text.find(key);
  if (at == std::string::npos) return "";
  size_t begin = at + key.size();
  while (begin < text.size() && (text[begin] == ' ' || text[begin] == '\t' || text[begin] == ':')) {
    ++begin;
  }
  return text.substr(begin, text.find('\n', begin) - begin);
}

void read_processors(const std::string& root, Machine* machine) {
  const std::string info = text_of(root + "/proc/cpuinfo");
  machine->processor = value_after(info, "model name");
  machine->vendor = value_after(info, "vendor_id");
  const std::string flags = " " + value_after(info, "\nflags") + " ";
  machine->is_virtual = flags.find(" hypervisor ") != std::string::npos;
}

int count_cores(const std::string& root, const std::vector<int>& processors) {
  std::set<std::string> cores;
  for (const int processor : processors) {
    const std::string topology =
        fmt::format("{}/sys/devices/system/cpu/cpu{}/topology/", root, processor);
    const std::string core = text_of(topology + "core_id");
    if (core.empty()) return static_cast<int>(processors.size());
    cores.insert(text_of(topology + "physical_package_id") + ":" + core);
  }
  return static_cast<int>(cores.size());
}

void read_numa_nodes(const std::string& root, Machine* machine) {
  const std::string nodes = root + "/sys/devices/system/node/";
  const auto kibibytes = [](const std::string& info, std::string_view key) {
    return number_of(value_after(info, key)).value_or(0) * 1024;
  };
  for (const std::string& name : names_in(nodes)) {
    if (!name.starts_with("node")) continue;
    const auto number = number_of(name.substr(4));
    if (!number) continue;
    NumaNode node;
    node.number = static_cast<int>(*number);
    node.processors = parse_list(text_of(nodes + name + "/cpulist"));
    node.cores = count_cores(root, node.processors);
    const std::string memory = text_of(nodes + name + "/meminfo");
    node.memory_bytes = kibibytes(memory, "MemTotal:");
    node.free_bytes = kibibytes(memory, "MemFree:");
    machine->numa_nodes.push_back(std::move(node));
  }
  if (!machine->numa_nodes.empty()) return;
  // A kernel without NUMA, or a sandbox: one node of all.
  NumaNode all;
  all.processors = parse_list(text_of(root + "/sys/devices/system/cpu/online"));
  all.cores = count_cores(root, all.processors);
  const std::string memory = text_of(root + "/proc/meminfo");
  all.memory_bytes = kibibytes(memory, "MemTotal:");
  all.free_bytes = kibibytes(memory, "MemFree:");
  if (!all.processors.empty()) machine->numa_nodes.push_back(std::move(all));
}

void read_interfaces(const std::string& root, Machine* machine) {
  std::vector<Interface> with_addresses;
  if (root.empty()) {
    if (auto found = interfaces()) with_addresses = std::move(found).value();
  }
  const std::string folder = root + "/sys/class/net/";
  for (const std::string& name : names_in(folder)) {
    const std::string path = folder + name;
    const auto mtu = number_at(path + "/mtu");
    if (!mtu) continue;  // bonding_masters and other files
    InterfaceFacts facts;
    facts.name = name;
    facts.mtu = *mtu;
    facts.state = text_of(path + "/operstate");
    facts.driver = link_name(path + "/device/driver");
    facts.numa_node = numa_node_at(path + "/device/numa_node");
    const auto speed = number_at(path + "/speed");
    if (speed && *speed > 0) facts.megabits_per_second = *speed;
    for (const Interface& interface : with_addresses) {
      if (interface.name != name) continue;
      for (const Address& address : interface.addresses) facts.addresses.push_back(address.ip());
    }
    machine->interfaces.push_back(std::move(facts));
  }
}

// The interface of the IPv4 default route, the one of the lowest metric; else of IPv6.
std::string default_route(const std::string& root) {
  std::istringstream table(text_of(root + "/proc/net/route"));
  std::string best, line;
  int64_t best_metric = INT64_MAX;
  while (std::getline(table, line)) {
    std::istringstream fields(line);
    std::string name, destination, gateway, flags, references, use, metric;
    if (!(fields >> name >> destination >> gateway >> flags >> references >> use >> metric)) {
      continue;
    }
    const auto cost = number_of(metric);
    if (destination != "00000000" || !cost || *cost >= best_metric) continue;
    best = name;
    best_metric = *cost;
  }
  if (!best.empty()) return best;
  std::istringstream six(text_of(root + "/proc/net/ipv6_route"));
  const std::string everything(32, '0');
  while (std::getline(six, line)) {
    std::istringstream fields(line);
    const std::vector<std::string> words{std::istream_iterator<std::string>(fields), {}};
    if (words.size() == 10 && words[0] == everything && words[1] == "00" && words[9] != "lo") {
      return words[9];
    }
  }
  return "";
}

std::string interface_with(const Machine& machine, const std::string& address) {
  for (const InterfaceFacts& facts : machine.interfaces) {
    if (std::find(facts.addresses.begin(), facts.addresses.end(), address) !=
        facts.addresses.end()) {
      return facts.name;
    }
  }
  return "";
}

// Only numbers: a name that a resolver must be asked for is left to the rendezvous, which has a deadline.
std::optional<Address> numeric_address(const std::string& text) {
  sockaddr_in four{};
  four.sin_family = AF_INET;
  if (inet_pton(AF_INET, text.c_str(), &four.sin_addr) == 1) {
    return address_from(reinterpret_cast<const sockaddr*>(&four));
  }
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  if (inet_pton(AF_INET6, text.c_str(), &six.sin6_addr) == 1) {
    return address_from(reinterpret_cast<const sockaddr*>(&six));
  }
  return std::nullopt;
}

// As the rendezvous does it: the variable, else the route to the master.
void choose_interface(const std::string& root, const Environment& environment, Machine* machine) {
  if (const auto wished = environment("AMXTRAIN_SOCKET_IFNAME")) {
    const bool there =
        std::any_of(machine->interfaces.begin(), machine->interfaces.end(),
                    [&](const InterfaceFacts& facts) { return facts.name == *wished; });
    machine->chosen_interface = there ? *wished : "";
    machine->chosen_reason = "AMXTRAIN_SOCKET_IFNAME";
    return;
  }
  const auto master = environment("MASTER_ADDR");
  const auto host = master && root.empty() ? numeric_address(*master) : std::nullopt;
  if (host) {
    if (const auto own = address_towards(*host)) {
      machine->chosen_interface = interface_with(*machine, own->ip());
      machine->chosen_reason = fmt::format("route to MASTER_ADDR {}", *master);
      if (!machine->chosen_interface.empty()) return;
    }
  }
  machine->chosen_interface = default_route(root);
  machine->chosen_reason = "default route";
}

void read_rdma_devices(const std::string& root, Machine* machine) {
  const std::string folder = root + "/sys/class/infiniband/";
  std::set<std::string> reachable;  // devices whose character device is there
  const std::string verbs = root + "/sys/class/infiniband_verbs/";
  for (const std::string& name : names_in(verbs)) {
    if (path_exists(root + "/dev/infiniband/" + name)) {
      reachable.insert(text_of(verbs + name + "/ibdev"));
    }
  }
  for (const std::string& name : names_in(folder)) {
    const std::string path = folder + name;
    RdmaDevice device;
    device.name = name;
    device.driver = link_name(path + "/device/driver");
    device.numa_node = numa_node_at(path + "/device/numa_node");
    const std::string state = text_of(path + "/ports/1/state");  // "4: ACTIVE"
    const size_t colon = state.find(": ");
    device.state = colon == std::string::npos ? state : state.substr(colon + 2);
    const std::string rate = text_of(path + "/ports/1/rate");  // "100 Gb/sec (4X EDR)"
    if (const double value = std::atof(rate.c_str()); value > 0) device.gigabits_per_second = value;
    device.usable = reachable.contains(name);
    machine->rdma_devices.push_back(std::move(device));
  }
}

// True when the bridge sends requests between its ports up to the host: bit 2 of the control register of its Access Control Services
// (PCI Express Base Specification, extended capability 0x000D, control at offset 6). Unset when that part of its registers can't be read.
std::optional<bool> redirects_requests(const std::string& config_path) {
  constexpr size_t kFirstExtended = 0x100, kAcs = 0x000D, kRequestRedirect = 1 << 2;
  const std::string config = [&] {
    std::ifstream file(config_path, std::ios::binary);
    std::string bytes(4096, '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    bytes.resize(static_cast<size_t>(file.gcount()));
    return bytes;
  }();
  const auto word = [&](size_t at) -> uint32_t {
    return static_cast<unsigned char>(config[at]) |
           static_cast<uint32_t>(static_cast<unsigned char>(config[at + 1])) << 8;
  };
  if (config.size() <= 64) return std::nullopt;  // without root the kernel gives no more
  size_t at = kFirstExtended;
  for (int hops = 0; hops < 64 && at >= kFirstExtended && at + 8 <= config.size(); ++hops) {
    if (word(at) == kAcs) return (word(at + 6) & kRequestRedirect) != 0;
    at = word(at + 2) >> 4;
  }
  return false;
}

void read_pci_gpus(const std::string& root, Machine* machine) {
  const std::string devices = root + "/sys/bus/pci/devices/";
  for (const std::string& name : names_in(devices)) {
    const std::string path = devices + name;
    const auto kind = number_at(path + "/class", 16).value_or(0) >> 8;
    constexpr int64_t kNvidia = 0x10de, kVga = 0x0300, k3d = 0x0302, kBridge = 0x0604;
    if (number_at(path + "/vendor", 16) != kNvidia || (kind != kVga && kind != k3d)) continue;
    PciGpu gpu;
    gpu.bus_id = name;
    gpu.numa_node = numa_node_at(path + "/numa_node");
    // "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0": the bridges above are the folders above.
    if (char* real = realpath(path.c_str(), nullptr); real != nullptr) {
      std::string above = parent_path(real);
      std::free(real);
      while (number_at(above + "/class", 16).value_or(0) >> 8 == kBridge) {
        const auto redirects = redirects_requests(above + "/config");
        if (redirects) machine->acs_known = true;
        if (redirects == true) gpu.redirecting_bridges.push_back(base_name(above));
        above = parent_path(above);
      }
    }
    machine->pci_gpus.push_back(std::move(gpu));
  }
}

void read_limits(const std::string& root, Machine* machine) {
  const std::string locked = value_after(text_of(root + "/proc/self/limits"), "Max locked memory");
  machine->locked_memory_bytes = number_of(locked);
  struct statvfs space = {};
  if (statvfs((root + "/dev/shm").c_str(), &space) == 0) {
    const auto bytes = [&](fsblkcnt_t blocks) {
      return static_cast<int64_t>(blocks) * static_cast<int64_t>(space.f_frsize);
    };
    machine->dev_shm_bytes = bytes(space.f_blocks);
    machine->dev_shm_free_bytes = bytes(space.f_bavail);
  }
  if (const auto space_of_ipc = read_symlink(root + "/proc/self/ns/ipc")) {
    machine->own_ipc_namespace = *space_of_ipc != kFirstIpcNamespace;
  }
  machine->has_nvidia_driver = path_exists(root + "/proc/driver/nvidia/version");
}

// NCCL opens libnccl-net.so, or libnccl-net-NAME.so when NCCL_NET_PLUGIN is NAME; aws-ofi-nccl installs both.
std::string find_net_plugin(const std::string& root, const Environment& environment) {
  std::vector<std::string> names = {"libnccl-net.so", "libnccl-net-ofi.so"};
  if (const auto wished = environment("NCCL_NET_PLUGIN"); wished && !wished->empty()) {
    names = {fmt::format("libnccl-net-{}.so", *wished), *wished};
  }
  std::vector<std::string> folders;
  std::istringstream path(environment("LD_LIBRARY_PATH").value_or(""));
  for (std::string folder; std::getline(path, folder, ':');) {
    if (!folder.empty()) folders.push_back(folder);
  }
  for (const char* folder : {"/opt/amazon/ofi-nccl/lib", "/opt/amazon/ofi-nccl/lib64",
                             "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu", "/opt/aws-ofi-nccl/lib",
                             "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib"}) {
    folders.emplace_back(folder);
  }
  for (const std::string& folder : folders) {
    for (const std::string& name : names) {
      const std::string file = name.starts_with('/') ? name : join_path(folder, name);
      if (path_exists(root + file)) return file;
    }
  }
  return "";
}

}  // namespace

std::vector<int> parse_list(const std::string& text) {
  constexpr int kMost = 1 << 16;
  std::vector<int> numbers;
  std::istringstream ranges(text);
  for (std::string range; std::getline(ranges, range, ',');) {
    const auto first = number_of(range);
    if (!first) continue;
    const size_t dash = range.find('-');
    const auto last = dash == std::string::npos ? first : number_of(range.substr(dash + 1));
    if (!last || *first < 0 || *last >= kMost) continue;
    for (int64_t number = *first; number <= *last; ++number) {
      numbers.push_back(static_cast<int>(number));
    }
  }
  return numbers;
}

std::string list_text(const std::vector<int>& numbers) {
  std::string text;
  for (size_t begin = 0; begin < numbers.size();) {
    size_t end = begin + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += text.empty() ? "" : ",";
    text += end - begin == 1 ? fmt::format("{}", numbers[begin])
                             : fmt::format("{}-{}", numbers[begin], numbers[end - 1]);
    begin = end;
  }
  return text;
}

Machine read_machine(const std::string& root, const Environment& environment) {
  Machine machine;
  read_processors(root, &machine);
  read_numa_nodes(root, &machine);
  read_interfaces(root, &machine);
  choose_interface(root, environment, &machine);
  read_rdma_devices(root, &machine);
  read_pci_gpus(root, &machine);
  read_limits(root, &machine);
  machine.net_plugin = find_net_plugin(root, environment);
  return machine;
}

}  // namespace amxt::comm
