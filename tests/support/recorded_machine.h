// Another machine for a test: a file of tests/stubs/machines (or text of that form) becomes a folder with its /sys and /proc, and the
// variables that make the library look there.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>

namespace amxt::test {

class RecordedMachine {
 public:
  // `text`: lines as the README of tests/stubs tells them. `folder`: empty, of the test.
  RecordedMachine(std::string folder, const std::string& text) : root_(std::move(folder)) {
    put("machine.txt", text);
    put("proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\n");
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) read(line);
  }
  static std::string text_of(const std::string& name) {
    const std::string path =
        std::string(AMXT_TEST_SOURCE_DIR) + "/tests/stubs/machines/" + name + ".txt";
    std::ifstream file(path);
    EXPECT_TRUE(file.good()) << path;
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  const std::string& root() const { return root_; }
  std::string fixture() const { return root_ + "/machine.txt"; }
  // For a process that is to be on this machine.
  std::map<std::string, std::string> variables() const {
    return {{"AMXTRAIN_TOPOLOGY_ROOT", root_},
            {"AMXTRAIN_NVML_LIBRARY", nvml_stub()},
            {"NVML_STUB_FIXTURE", fixture()}};
  }
  static std::string nvml_stub() { return AMXT_TEST_STUBS_DIR "/libnvidia-ml.so.1"; }
  static std::string old_nvml_stub() { return AMXT_TEST_STUBS_DIR "/old/libnvidia-ml.so.1"; }

  void put(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
  }
  void link(const std::string& path, const std::string& target) const {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::filesystem::create_symlink(target, file);
  }

 private:
  using Keys = std::map<std::string, std::string>;

  void read(const std::string& line) {
    std::istringstream words(line);
    std::string kind, name;
    words >> kind;
    const std::string rest = line.size() > kind.size() ? line.substr(kind.size() + 1) : "";
    if (kind == "processor") cpuinfo_ += "model name\t: " + rest + "\n";
    if (kind == "vendor") cpuinfo_ += "vendor_id\t: " + rest + "\n";
    if (kind == "hypervisor") cpuinfo_ += "flags\t\t: fpu hypervisor avx2\n";
    put("proc/cpuinfo", cpuinfo_);
    if (kind == "cpus") read_processors(keys_of(words));
    if (kind == "memory_gib") read_memory(std::stoll(rest));
    if (kind == "locked") {
      put("proc/self/limits", "Max open files 1024 4096 files\nMax locked memory         " + rest +
                                  "            " + rest + "            bytes\n");
    }
    if (kind == "ipc") link("proc/self/ns/ipc", "ipc:[" + rest + "]");
    if (kind == "default_route") {
      put("proc/net/route",
          "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n" + rest +
              "\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n");
    }
    if (kind == "file") {
      words >> name;
      std::string text;
      std::getline(words >> std::ws, text);
      put(name, text + "\n");
    }
    if (kind == "net") {
      words >> name;
      read_interface("sys/class/net/" + name, keys_of(words));
    }
    if (kind == "rdma") {
      words >> name;
      read_rdma(name, keys_of(words));
    }
    if (kind == "gpu") read_gpu(keys_of(words));
    if (kind == "hidden_gpu") read_gpu(keys_of(words));
  }

  static Keys keys_of(std::istringstream& words) {
    Keys keys;
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals != std::string::npos) keys[word.substr(0, equals)] = word.substr(equals + 1);
    }
    return keys;
  }

  // As Linux numbers them on a server: a hardware thread of every core, then the second ones.
  void read_processors(const Keys& keys) {
    const int packages = std::stoi(keys.at("packages")), cores = std::stoi(keys.at("cores"));
    const int threads = std::stoi(keys.at("threads"));
    nodes_ = packages;
    for (int package = 0; package < packages; ++package) {
      std::string list;
      for (int thread = 0; thread < threads; ++thread) {
        const int first = (thread * packages + package) * cores;
        list += (list.empty() ? "" : ",") + std::to_string(first) + "-" +
                std::to_string(first + cores - 1);
        for (int core = 0; core < cores; ++core) {
          const std::string topology =
              "sys/devices/system/cpu/cpu" + std::to_string(first + core) + "/topology/";
          put(topology + "core_id", std::to_string(core) + "\n");
          put(topology + "physical_package_id", std::to_string(package) + "\n");
        }
      }
      put("sys/devices/system/node/node" + std::to_string(package) + "/cpulist", list + "\n");
    }
  }
  void read_memory(long long gibibytes) {
    for (int node = 0; node < nodes_; ++node) {
      const std::string number = std::to_string(node), size = std::to_string(gibibytes << 20);
      put("sys/devices/system/node/node" + number + "/meminfo",
          "Node " + number + " MemTotal:       " + size + " kB\nNode " + number +
              " MemFree:        " + size + " kB\n");
    }
  }
  void read_interface(const std::string& path, const Keys& keys) {
    for (const auto& [key, file] : Keys{{"speed", "speed"},
                                        {"mtu", "mtu"},
                                        {"state", "operstate"},
                                        {"node", "device/numa_node"}}) {
      if (keys.contains(key)) put(path + "/" + file, keys.at(key) + "\n");
    }
    if (keys.contains("driver")) link(path + "/device/driver", "../drivers/" + keys.at("driver"));
  }
  void read_rdma(const std::string& name, const Keys& keys) {
    const std::string path = "sys/class/infiniband/" + name;
    put(path + "/ports/1/state", "4: " + keys.at("state") + "\n");
    if (keys.contains("gbit")) put(path + "/ports/1/rate", keys.at("gbit") + " Gb/sec (4X EDR)\n");
    if (keys.contains("node")) put(path + "/device/numa_node", keys.at("node") + "\n");
    link(path + "/device/driver", "../drivers/" + keys.at("driver"));
    const std::string verbs = "uverbs" + std::to_string(rdma_devices_++);
    put("sys/class/infiniband_verbs/" + verbs + "/ibdev", name + "\n");
    if (!keys.contains("hidden")) put("dev/infiniband/" + verbs, "");
  }
  void read_gpu(const Keys& keys) {
    if (!keys.contains("bus")) return;
    const std::string path = "sys/bus/pci/devices/" + keys.at("bus");
    put(path + "/vendor", "0x10de\n");
    put(path + "/class", "0x030200\n");
    if (keys.contains("node")) put(path + "/numa_node", keys.at("node") + "\n");
  }

  const std::string root_;
  std::string cpuinfo_;
  int nodes_ = 1;
  int rdma_devices_ = 0;
};

}  // namespace amxt::test
