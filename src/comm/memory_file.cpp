#include "comm/memory_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>

#include "base/text.h"

namespace amxt::comm {
namespace {

#ifndef MFD_NOEXEC_SEAL
constexpr unsigned MFD_NOEXEC_SEAL = 0x0008U;
#endif
#ifndef MADV_COLLAPSE
constexpr int MADV_COLLAPSE = 25;
#endif

size_t whole_pages(int64_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (static_cast<size_t>(bytes) + page - 1) / page * page;
}

Error map_error(int64_t bytes) {
  return system_error(fmt::format("mapping {} bytes", bytes), errno);
}

// An address range of `bytes` on a 2 MiB boundary, taken but not backed.
Result<std::byte*> reserve_aligned(int64_t bytes) {
  const size_t wanted = whole_pages(bytes);
  const size_t taken = wanted + kHugePageBytes;
  void* range = mmap(nullptr, taken, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return map_error(bytes);
  auto* begin = static_cast<std::byte*>(range);
  const size_t offset =
      (kHugePageBytes - reinterpret_cast<uintptr_t>(begin) % kHugePageBytes) % kHugePageBytes;
  if (offset > 0) munmap(begin, offset);
  munmap(begin + offset + wanted, taken - offset - wanted);
  return begin + offset;
}

Result<std::byte*> map_aligned(int64_t bytes, int flags, int fd) {
  AMXT_ASSIGN(std::byte* const place, reserve_aligned(bytes));
  const size_t length = whole_pages(bytes);
  void* data = mmap(place, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
  if (data == MAP_FAILED) {
    Error error = map_error(bytes);
    munmap(place, length);
    return error;
  }
  return static_cast<std::byte*>(data);
}

}  // namespace

Result<Descriptor> make_memory_file(const char* name, int64_t bytes) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return system_error("memfd_create", errno);
  Descriptor file(fd);
  if (ftruncate(fd, bytes) != 0) {
    return system_error(fmt::format("memfd of {} bytes", bytes), errno);
  }
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return system_error("sealing a memfd", errno);
  }
  return file;
}

Result<std::byte*> map_memory_file(const Descriptor& file, int64_t bytes) {
  return map_aligned(bytes, MAP_SHARED, file.get());
}

Result<std::byte*> map_private_memory(int64_t bytes) {
  AMXT_ASSIGN(std::byte* const data, map_aligned(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  if (bytes >= kHugePageBytes) madvise(data, whole_pages(bytes), MADV_HUGEPAGE);
  return data;
}

void unmap_memory(std::byte* data, int64_t bytes) {
  if (data != nullptr) munmap(data, whole_pages(bytes));
}

void interleave_memory(std::byte* data, int64_t bytes) {
  constexpr unsigned long kMaxNodes = 1024;
  constexpr unsigned long kMemsAllowed = 1 << 2;  // MPOL_F_MEMS_ALLOWED
  unsigned long nodes[kMaxNodes / 64] = {};
  if (syscall(SYS_get_mempolicy, nullptr, nodes, kMaxNodes, nullptr, kMemsAllowed) != 0) return;
  int count = 0;
  for (const unsigned long word : nodes) count += std::popcount(word);
  if (count > 1) syscall(SYS_mbind, data, whole_pages(bytes), MPOL_INTERLEAVE, nodes, kMaxNodes, 0);
}

int64_t collapse_pages(std::byte* data, int64_t first, int64_t last) {
  int64_t refused = 0;
  for (int64_t page = first; page < last; ++page) {
    std::byte* at = data + page * kHugePageBytes;
    // An empty range is not collapsed: bring in one small page, changing nothing that a peer writes.
    std::atomic_ref<unsigned char>(*reinterpret_cast<unsigned char*>(at)).fetch_or(0);
    refused += madvise(at, kHugePageBytes, MADV_COLLAPSE) != 0;
  }
  return refused;
}

}  // namespace amxt::comm
