// safetensors: a strict reader and a streaming writer (format: u64 N, N bytes of JSON, data without holes).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/dtype.h"
#include "base/file.h"
#include "base/result.h"

namespace amxt::io {

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;  // offsets in the file, not in the data part
  int64_t end = 0;

  int64_t bytes() const { return end - begin; }
  int64_t elements() const { return bytes() / dtype_bytes(dtype); }
};

// Thread-safe after open(). Everything about the header is checked in open(); each error names file, tensor and offset.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const std::string& path);
  // `name` is a base name below `directory` (an index names it: never trusted with a path).
  static Result<SafetensorsFile> open_beneath(const std::string& directory,
                                              const std::string& name);

  const std::string& path() const { return file_.path(); }
  int64_t file_bytes() const { return file_bytes_; }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }  // in order of offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const TensorEntry* find(std::string_view name) const;  // null when absent
  Result<const TensorEntry*> require(
      std::string_view name) const;  // kFormat naming file and tensor
  // Exactly data.size() bytes from `offset` within the tensor. An error names file, tensor and offset.
  Status read(const TensorEntry& tensor, int64_t offset, std::span<std::byte> data) const;
  const File& file() const { return file_; }

 private:
  static Result<SafetensorsFile> parse(File file);
  File file_;
  int64_t file_bytes_ = 0;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
  std::unordered_map<std::string, size_t> by_name_;
};

// What a file to be written holds; offsets are given by the writer.
struct TensorPlan {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Header first, then tensors in any order and in pieces; finish() checks that every byte was given, syncs and closes.
class SafetensorsWriter {
 public:
  // Creates `path` (must not exist). Tensors lie in the file in the order given. The space is reserved, so that a full disk shows here.
  // Until finish() the file's header length is 0: what a killed writer leaves behind is never taken for a file of zeros.
  static Result<SafetensorsWriter> create(const std::string& path, std::vector<TensorPlan> tensors,
                                          std::map<std::string, std::string> metadata = {});

  // A file that another process has created with the same plan, to write some of its rows. The creator alone ends it, by
  // finish_shared().
  static Result<SafetensorsWriter> open(const std::string& path, std::vector<TensorPlan> tensors,
                                        std::map<std::string, std::string> metadata = {});

  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;
  // Bytes at `offset` within the tensor; may be called from several threads for different ranges.
  Status write(const TensorEntry& tensor, int64_t offset, std::span<const std::byte> data);
  int64_t file_bytes() const { return file_bytes_; }
  Status finish();
  int64_t bytes_given() const;  // through this writer
  // What was given through this writer is on disk.
  Status sync() const { return file_.sync(); }
  // Like finish(), for a file to which others wrote too: the caller knows that all bytes were given and synced.
  Status finish_shared();

 private:
  static Result<SafetensorsWriter> plan(const std::string& path, std::vector<TensorPlan> tensors,
                                        const std::map<std::string, std::string>& metadata,
                                        std::string* header);

  File file_;
  int64_t file_bytes_ = 0;
  uint64_t header_bytes_ = 0;
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
  std::unique_ptr<std::atomic<int64_t>[]> written_;  // bytes given, per tensor
};

}  // namespace amxt::io
