#include "checkpoint/verify.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "checkpoint/blocks.h"
#include "checkpoint/checkpoint_file.h"
#include "checkpoint/resume.h"

namespace amxt::checkpoint {

Status verify(const std::string& path, const Progress& progress, Deadline deadline,
              const std::atomic<bool>* cancel) {
  AMXT_ASSIGN(const Manifest manifest, open_checkpoint(path));
  std::vector<CheckpointFile> files;
  std::vector<std::pair<size_t, size_t>> blocks;  // file, chunk
  BlockList list;
  for (size_t i = 0; i < manifest.files.size(); ++i) {
    AMXT_ASSIGN(CheckpointFile file, CheckpointFile::open(manifest, static_cast<int64_t>(i)));
    list.items.push_back({manifest.files[i].name, 0});
    for (size_t chunk = 0; chunk < file.chunks().size(); ++chunk) {
      const int64_t bytes = file.chunks()[chunk].bytes;
      list.buffer_bytes = std::max(list.buffer_bytes, bytes);
      list.add(i, bytes);
      blocks.emplace_back(i, chunk);
    }
    files.push_back(std::move(file));
  }
  return run_blocks(list, "verifying", progress, deadline, cancel,
                    [&](size_t block, std::span<std::byte> buffer) {
                      const auto [file, index] = blocks[block];
                      const Chunk& chunk = files[file].chunks()[index];
                      return files[file].read(manifest, chunk,
                                              buffer.first(static_cast<size_t>(chunk.bytes)));
                    });
}

Result<std::string> checkpoint_info(const std::string& path) {
  AMXT_ASSIGN(const Manifest manifest, open_checkpoint(path));
  return manifest_info(manifest);
}

}  // namespace amxt::checkpoint
