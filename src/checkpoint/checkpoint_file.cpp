#include "checkpoint/checkpoint_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/blocks.h"
#include "checkpoint/checksum.h"

namespace amxt::checkpoint {
namespace {

constexpr int64_t kHeaderLimit = 100'000'000;  // of the safetensors format

std::string path_of(const Manifest& manifest, int64_t file) {
  return join_path(manifest.path, manifest.files[static_cast<size_t>(file)].name);
}

const char* part_text(Part part) {
  constexpr const char* kNames[kParts] = {"master weight", "first moment", "second moment"};
  return kNames[static_cast<int>(part)];
}

Error wrong_size(const Manifest& manifest, int64_t file, int64_t bytes) {
  return Error(Code::kCorrupt,
               fmt::format("{}: {} bytes, the manifest says {}", quote(path_of(manifest, file)),
                           bytes, manifest.files[static_cast<size_t>(file)].bytes));
}

}  // namespace

std::vector<Chunk> chunks_of_file(const Manifest& manifest, int64_t file) {
  std::vector<Chunk> chunks;
  for (size_t tensor = 0; tensor < manifest.tensors.size(); ++tensor) {
    const ManifestTensor& of = manifest.tensors[tensor];
    const int64_t rows = chunk_rows(manifest.chunk_bytes, of.columns);
    for (const ManifestPart& part : of.parts) {
      if (part.file != file) continue;
      for (int kind = 0; kind < kParts; ++kind) {
        for (int64_t row = part.row_begin; row < part.row_end; row += rows) {
          const int64_t end = std::min(part.row_end, row + rows);
          chunks.push_back({static_cast<Part>(kind), static_cast<int64_t>(tensor), row, end, 0,
                            (end - row) * of.columns * 4, static_cast<int64_t>(chunks.size())});
        }
      }
    }
  }
  return chunks;
}

Result<std::string> file_checksum(const File& file, std::span<const uint64_t> checksums) {
  uint64_t length = 0;
  AMXT_TRY(file.read_at(0, std::as_writable_bytes(std::span(&length, 1))));
  if (length > kHeaderLimit)
    return Error(Code::kCorrupt,
                 fmt::format("{}: a header of {} bytes", quote(file.path()), length));
  const std::span<const std::byte> table = std::as_bytes(checksums);
  std::vector<std::byte> data(8 + length + table.size());
  AMXT_TRY(file.read_at(0, std::span(data).first(8 + length)));
  std::copy(table.begin(), table.end(), data.begin() + static_cast<int64_t>(8 + length));
  return checksum128(data);
}

Status check_file_size(const Manifest& manifest, int64_t file) {
  AMXT_ASSIGN(
      const File opened,
      File::open_read_beneath(manifest.path, manifest.files[static_cast<size_t>(file)].name));
  AMXT_ASSIGN(const int64_t bytes, opened.size());
  if (bytes != manifest.files[static_cast<size_t>(file)].bytes)
    return wrong_size(manifest, file, bytes);
  return {};
}

Result<CheckpointFile> CheckpointFile::open(const Manifest& manifest, int64_t file) {
  const ManifestFile& said = manifest.files[static_cast<size_t>(file)];
  AMXT_TRY(check_file_size(manifest, file));
  CheckpointFile opened;
  AMXT_ASSIGN(opened.file_, io::SafetensorsFile::open_beneath(manifest.path, said.name));
  opened.chunks_ = chunks_of_file(manifest, file);
  const auto other = [&](std::string_view name, std::string_view what) {
    return Error(Code::kCorrupt, fmt::format("{}: tensor {} {}", quote(path_of(manifest, file)),
                                             quote(name), what));
  };
  size_t expected = 1;
  for (size_t i = 0; i < opened.chunks_.size();) {
    const ManifestTensor& tensor = manifest.tensors[static_cast<size_t>(opened.chunks_[i].tensor)];
    size_t end = i + 1;
    while (end < opened.chunks_.size() && opened.chunks_[end].part == opened.chunks_[i].part &&
           opened.chunks_[end].tensor == opened.chunks_[i].tensor &&
           opened.chunks_[end].row_begin == opened.chunks_[end - 1].row_end) {
      ++end;
    }
    const std::string name =
        part_name(opened.chunks_[i].part, tensor.name, opened.chunks_[i].row_begin,
                  opened.chunks_[end - 1].row_end);
    const io::TensorEntry* entry = opened.file_.find(name);
    if (entry == nullptr) return other(name, "is missing");
    int64_t offset = entry->begin;
    for (; i < end; ++i) {
      opened.chunks_[i].offset = offset;
      offset += opened.chunks_[i].bytes;
    }
    if (entry->dtype != DType::kF32 || offset != entry->end) return other(name, "has another size");
    ++expected;
  }
  const io::TensorEntry* table = opened.file_.find(kChecksumsName);
  if (table == nullptr) return other(kChecksumsName, "is missing");
  if (table->dtype != DType::kU64 ||
      table->elements() != static_cast<int64_t>(opened.chunks_.size()))
    return other(kChecksumsName, "has another size");
  if (opened.file_.tensors().size() != expected) {
    return Error(Code::kCorrupt,
                 fmt::format("{}: {} tensors, the manifest says {}", quote(path_of(manifest, file)),
                             opened.file_.tensors().size(), expected));
  }
  opened.checksums_.resize(opened.chunks_.size());
  AMXT_TRY(opened.file_.read(*table, 0, std::as_writable_bytes(std::span(opened.checksums_))));
  AMXT_ASSIGN(const std::string checksum, file_checksum(opened.file_.file(), opened.checksums_));
  if (checksum != said.checksum) {
    return Error(Code::kCorrupt,
                 fmt::format("{}: header and table of checksums are not what was written",
                             quote(path_of(manifest, file))));
  }
  return opened;
}

Status CheckpointFile::read(const Manifest& manifest, const Chunk& chunk,
                            std::span<std::byte> data) const {
  const ManifestTensor& tensor = manifest.tensors[static_cast<size_t>(chunk.tensor)];
  const auto named = [&](Error error) {
    return std::move(error).in(fmt::format("{} of tensor {}, rows {} to {}", part_text(chunk.part),
                                           quote(tensor.name), chunk.row_begin, chunk.row_end));
  };
  if (Status status = file_.file().read_at(chunk.offset, data); !status)
    return named(std::move(status).error());
  drop_cache(file_.file(), chunk.offset, chunk.bytes);
  if (checksum64(data) == checksums_[static_cast<size_t>(chunk.checksum)]) return {};
  return Error(
      Code::kCorrupt,
      fmt::format("{}: tensor {}, {}, rows {} to {}: not what was written: the checksum differs",
                  quote(file_.path()), quote(tensor.name), part_text(chunk.part), chunk.row_begin,
                  chunk.row_end));
}

}  // namespace amxt::checkpoint
