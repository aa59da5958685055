// Carver: hands out aligned pieces of one memory, one after the other; with none it only adds up their sizes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace amxt {

inline constexpr int64_t kCacheLine = 64;

constexpr int64_t whole_lines(int64_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += whole_lines(count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace amxt
