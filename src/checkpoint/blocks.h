// Blocks: many small pieces of work on files, done by a few threads of their own, each with one buffer; progress, deadline and
// cancel are seen to by the thread that waits for them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/file.h"
#include "base/function_ref.h"
#include "base/result.h"
#include "checkpoint/progress.h"

namespace amxt::checkpoint {

inline constexpr int64_t kBlockBytes = 4 << 20;
// Threads that keep a disk busy; with a block each, a rank's extra memory stays at 16 MiB.
inline constexpr int kBlockThreads = 4;

struct BlockList {
  struct Item {
    std::string name;
    int64_t bytes = 0;
  };
  struct Block {
    size_t item = 0;
    int64_t bytes = 0;
  };
  // Adds a block to an item; blocks are taken in the order in which they are added, items in theirs.
  void add(size_t item, int64_t bytes) {
    blocks.push_back({item, bytes});
    items[item].bytes += bytes;
  }
  std::vector<Item> items;
  std::vector<Block> blocks;
  int64_t buffer_bytes = kBlockBytes;  // of each thread
};

// Calls work(index of the block, buffer) for all blocks. The error is that of the first block, in order, that was found to fail; or of
// progress; kTimeout and kCancelled name `what`. All threads have ended when this returns.
Status run_blocks(const BlockList& list, const char* what, const Progress& progress,
                  Deadline deadline, const std::atomic<bool>* cancel,
                  FunctionRef<Status(size_t block, std::span<std::byte> buffer)> work);

// Drops the whole pages of a range from the page cache: what was read once is not read again.
void drop_cache(const File& file, int64_t offset, int64_t bytes);

}  // namespace amxt::checkpoint
