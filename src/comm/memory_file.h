// Shared memory without a file system: a sealed memfd, mapped on 2 MiB boundaries.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "comm/socket.h"

namespace amxt::comm {

inline constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// Zero-filled; its size can't change any more, so that no peer can make another one fault.
Result<Descriptor> make_memory_file(const char* name, int64_t bytes);
Result<std::byte*> map_memory_file(const Descriptor& file, int64_t bytes);
// Memory of this process alone.
Result<std::byte*> map_private_memory(int64_t bytes);
void unmap_memory(std::byte* data, int64_t bytes);

// Over all NUMA nodes that this process may use, page by page, when there are several.
void interleave_memory(std::byte* data, int64_t bytes);

// Makes the 2 MiB pages [first, last) huge, allocating them; how many the kernel refused. Content stays.
int64_t collapse_pages(std::byte* data, int64_t first, int64_t last);

}  // namespace amxt::comm
