// CheckpointFile: one data file of a checkpoint, opened against its manifest: size, header and table of checksums are what was written.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/manifest.h"
#include "io/safetensors.h"

namespace amxt::checkpoint {

// Rows of one part of a tensor that have one checksum.
struct Chunk {
  Part part = Part::kMaster;
  int64_t tensor = 0;  // index into the manifest's tensors
  int64_t row_begin = 0, row_end = 0;
  int64_t offset = 0;  // bytes, in the file
  int64_t bytes = 0;
  int64_t checksum = 0;  // index into the file's table
};

// Chunks of a file in its order: for each part of a tensor in order of tensors and rows its master, m and v. Offsets are left 0.
std::vector<Chunk> chunks_of_file(const Manifest& manifest, int64_t file);

class CheckpointFile {
 public:
  // kNotFound, kCorrupt or kFormat, naming the file.
  static Result<CheckpointFile> open(const Manifest& manifest, int64_t file);

  const std::vector<Chunk>& chunks() const { return chunks_; }
  // Reads a chunk (data has its bytes) and compares it with its checksum; kCorrupt names file, tensor and rows.
  Status read(const Manifest& manifest, const Chunk& chunk, std::span<std::byte> data) const;
  const File& file() const { return file_.file(); }

 private:
  io::SafetensorsFile file_;
  std::vector<Chunk> chunks_;
  std::vector<uint64_t> checksums_;
};

// XXH3-128 of the header (its length included) and of the table of checksums.
Result<std::string> file_checksum(const File& file, std::span<const uint64_t> checksums);
// That the file is there and has its size.
Status check_file_size(const Manifest& manifest, int64_t file);

}  // namespace amxt::checkpoint
