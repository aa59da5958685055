#include "comm/memory_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

namespace amxt::comm {
namespace {

using ::testing::HasSubstr;

TEST(MemoryFile, IsZeroAndSharedBetweenItsMappings) {
  const int64_t bytes = 5 * 4096 + 1;
  const auto file = make_memory_file("test", bytes);
  ASSERT_TRUE(file) << file.error().message();
  std::byte* const one = *map_memory_file(*file, bytes);
  std::byte* const other = *map_memory_file(*file, bytes);
  EXPECT_NE(one, other);
  for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(one[i], std::byte{0});
  one[bytes - 1] = std::byte{7};
  EXPECT_EQ(other[bytes - 1], std::byte{7});
  unmap_memory(one, bytes);
  unmap_memory(other, bytes);
}

TEST(MemoryFile, NobodyCanShrinkOrGrowIt) {
  const auto file = make_memory_file("test", 8192);
  ASSERT_TRUE(file);
  EXPECT_NE(ftruncate(file->get(), 0), 0);
  EXPECT_NE(ftruncate(file->get(), 1 << 20), 0);
  struct stat status{};
  ASSERT_EQ(fstat(file->get(), &status), 0);
  EXPECT_EQ(status.st_size, 8192);
}

TEST(MemoryFile, TakesNoMemoryBeforeItIsTouched) {
  const int64_t bytes = int64_t{1} << 40;
  const auto file = make_memory_file("test", bytes);
  ASSERT_TRUE(file) << file.error().message();
  struct stat status{};
  ASSERT_EQ(fstat(file->get(), &status), 0);
  EXPECT_EQ(status.st_blocks, 0);
}

TEST(MemoryFile, MappingsBeginOnHugePageBoundaries) {
  for (const int64_t bytes :
       {int64_t{1}, int64_t{4096}, kHugePageBytes, 3 * kHugePageBytes + 4097}) {
    std::byte* const data = *map_private_memory(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % kHugePageBytes, 0u) << bytes;
    data[0] = data[bytes - 1] = std::byte{1};
    unmap_memory(data, bytes);
  }
}

TEST(MemoryFile, WhatDoesNotFitIsAnErrorWithTheSize) {
  const auto mapped = map_private_memory(int64_t{1} << 60);
  ASSERT_FALSE(mapped);
  EXPECT_EQ(mapped.error().code(), Code::kOutOfMemory);
  EXPECT_THAT(mapped.error().message(), HasSubstr("1152921504606846976 bytes"));
}

TEST(MemoryFile, CollapsingKeepsTheContent) {
  const int64_t bytes = 4 * kHugePageBytes;
  const auto file = make_memory_file("test", bytes);
  ASSERT_TRUE(file);
  std::byte* const data = *map_memory_file(*file, bytes);
  for (int64_t i = 0; i < bytes; i += 1001) data[i] = static_cast<std::byte>(i % 251);
  const int64_t refused = collapse_pages(data, 0, 4);
  EXPECT_GE(refused, 0);
  EXPECT_LE(refused, 4);
  for (int64_t i = 0; i < bytes; i += 1001)
    ASSERT_EQ(data[i], static_cast<std::byte>(i % 251)) << i;
  unmap_memory(data, bytes);
}

}  // namespace
}  // namespace amxt::comm
