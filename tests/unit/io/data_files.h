// Files of tokens, as tests need them: right ones, and wrong ones byte by byte.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace amxt::io {

class DataFiles : public testing::Test {
 protected:
  DataFiles() {
    std::string pattern = testing::TempDir() + "amxt_data_XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~DataFiles() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }

  template <typename T>
  static std::string bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
  }

  template <typename T>
  std::string bin(const std::string& name, const std::vector<T>& tokens) const {
    return write(name, bytes_of(tokens));
  }

  static std::string npy_bytes(const std::string& dictionary, const std::string& data,
                               int version = 1) {
    std::string out = "\x93NUMPY";
    out += static_cast<char>(version);
    out += '\0';
    const size_t length = dictionary.size();
    for (int i = 0; i < (version == 1 ? 2 : 4); ++i) {
      out += static_cast<char>(length >> (8 * i) & 0xFF);
    }
    return out + dictionary + data;
  }

  template <typename T>
  std::string npy(const std::string& name, const std::string& descr, const std::string& shape,
                  const std::vector<T>& items) const {
    return write(name, npy_bytes("{'descr': '" + descr + "', 'fortran_order': False, 'shape': " +
                                     shape + ", }          \n",
                                 bytes_of(items)));
  }

  // A safetensors file of named parts: (name, dtype, shape, bytes).
  struct Part {
    std::string name, dtype, shape, bytes;
  };
  std::string tensors(const std::string& name, const std::vector<Part>& parts) const {
    std::string header = "{";
    std::string data;
    for (const Part& part : parts) {
      if (header.size() > 1) header += ",";
      header += "\"" + part.name + "\":{\"dtype\":\"" + part.dtype + "\",\"shape\":" + part.shape +
                ",\"data_offsets\":[" + std::to_string(data.size()) + "," +
                std::to_string(data.size() + part.bytes.size()) + "]}";
      data += part.bytes;
    }
    header += "}";
    while (header.size() % 8 != 0) header += ' ';
    const uint64_t length = header.size();
    return write(name, bytes_of(std::vector<uint64_t>{length}) + header + data);
  }

  static Part tokens16(const std::vector<uint16_t>& tokens) {
    return {"tokens", "U16", "[" + std::to_string(tokens.size()) + "]", bytes_of(tokens)};
  }
  static Part offsets(const std::vector<int64_t>& offsets) {
    return {"document_offsets", "I64", "[" + std::to_string(offsets.size()) + "]",
            bytes_of(offsets)};
  }
  static Part weights8(const std::vector<uint8_t>& weights) {
    return {"loss_weight", "U8", "[" + std::to_string(weights.size()) + "]", bytes_of(weights)};
  }
  static Part weights32(const std::vector<float>& weights) {
    return {"loss_weight", "F32", "[" + std::to_string(weights.size()) + "]", bytes_of(weights)};
  }

  std::vector<std::string> files_left() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  std::string folder_;
};

}  // namespace amxt::io
