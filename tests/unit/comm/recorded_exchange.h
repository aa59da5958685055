// What torch's own client and server said to each other, from tests/recordings.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

namespace amxt::comm::test {

struct Utterance {
  int connection = 0;
  bool by_client = false;
  std::string bytes;
};

struct RecordedExchange {
  std::string name;
  std::vector<Utterance> utterances;
};

inline std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// `store`: "libuv" or "poll". The format is told by the script that made the files.
inline std::vector<RecordedExchange> recorded_exchanges(const std::string& store) {
  std::ifstream file(std::string(AMXT_TEST_SOURCE_DIR) + "/tests/recordings/tcp_store_" + store +
                     ".txt");
  std::vector<RecordedExchange> exchanges;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("#")) continue;
    if (line.starts_with("= ")) {
      exchanges.push_back({line.substr(2), {}});
      continue;
    }
    exchanges.back().utterances.push_back(
        {line[0] - '0', line[1] == '>', from_hex(line.substr(3))});
  }
  EXPECT_EQ(exchanges.size(), 14u) << "tests/recordings/tcp_store_" << store << ".txt";
  return exchanges;
}

}  // namespace amxt::comm::test
