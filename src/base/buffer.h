// Buffer: zeroed private memory, page-aligned (2 MiB-aligned and with huge pages asked for when large).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/result.h"

namespace amxt {

class Buffer {
 public:
  Buffer() = default;
  // kOutOfMemory naming `what` and the size. Pages are touched only when used.
  static Result<Buffer> allocate(int64_t bytes, const char* what);
  ~Buffer() { reset(); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }

  void reset();
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  std::span<T> span() const {
    return {as<T>(), static_cast<size_t>(bytes_) / sizeof(T)};
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace amxt
