// Any bytes as a safetensors file: refused in one line, or tensors that cover its data and can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace {

// A regular file in memory, opened by its name under /proc.
int memory_file() {
  static const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  return fd;
}

void expect(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int fd = memory_file();
  expect(fd >= 0 && ::ftruncate(fd, 0) == 0);
  expect(::pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const auto file = amxt::io::SafetensorsFile::open("/proc/self/fd/" + std::to_string(fd));
  if (!file) {
    expect(file.error().message().find('\n') == std::string::npos);
    return 0;
  }
  std::vector<std::byte> bytes(size);
  int64_t end = -1;
  for (const amxt::io::TensorEntry& tensor : file->tensors()) {
    expect(end < 0 || tensor.begin == end);
    end = tensor.end;
    int64_t elements = 1;
    for (const int64_t extent : tensor.shape) elements *= extent;
    expect(elements * amxt::dtype_bytes(tensor.dtype) == tensor.bytes());
    expect(file->find(tensor.name) == &tensor);
    const auto all = std::span(bytes).first(static_cast<size_t>(tensor.bytes()));
    expect(file->read(tensor, 0, all).ok());
  }
  expect(end < 0 || end == static_cast<int64_t>(size));
  return 0;
}
