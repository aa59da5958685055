#include "base/buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include "base/text.h"

namespace amxt {
namespace {

constexpr int64_t kHuge = int64_t{2} << 20;

}  // namespace

Result<Buffer> Buffer::allocate(int64_t bytes, const char* what) {
  Buffer buffer;
  if (bytes <= 0) return buffer;
  const int64_t alignment = bytes >= 2 * kHuge ? kHuge : 4096;
  const int64_t whole = (bytes + alignment - 1) / alignment * alignment;
  const int64_t mapped = whole + (alignment == kHuge ? kHuge : 0);
  void* at = mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    return Error(Code::kOutOfMemory,
                 fmt::format("{}: {} could not be allocated", what,
                             bytes_text(static_cast<uint64_t>(bytes))),
                 errno);
  }
  auto begin = reinterpret_cast<uintptr_t>(at);
  const uintptr_t aligned = (begin + static_cast<uintptr_t>(alignment) - 1) /
                            static_cast<uintptr_t>(alignment) * static_cast<uintptr_t>(alignment);
  if (aligned > begin) munmap(at, aligned - begin);
  const uintptr_t tail =
      begin + static_cast<uintptr_t>(mapped) - (aligned + static_cast<uintptr_t>(whole));
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + static_cast<uintptr_t>(whole)), tail);
  buffer.data_ = reinterpret_cast<std::byte*>(aligned);
  buffer.bytes_ = whole;
  if (alignment == kHuge) madvise(buffer.data_, static_cast<size_t>(whole), MADV_HUGEPAGE);
  return buffer;
}

void Buffer::reset() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace amxt
