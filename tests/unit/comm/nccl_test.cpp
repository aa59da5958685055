#include "comm/nccl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "comm/cuda.h"

namespace amxt::comm {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr const char* kStub = AMXT_TEST_STUBS_DIR "/libnccl.so.2";

TEST(Nccl, IsOpenedOnceWithItsVersion) {
  const auto nccl = open_nccl(kStub);
  ASSERT_TRUE(nccl) << nccl.error().message();
  EXPECT_EQ((*nccl)->version(), "2.20.5");
  EXPECT_THAT((*nccl)->path, EndsWith("/libnccl.so.2"));
  EXPECT_EQ(*open_nccl(kStub), *nccl);
  EXPECT_EQ((*nccl)->text(6, nullptr), "remote process exited or there was a network error (6)");
}

TEST(Nccl, AMissingLibraryIsNamed) {
  const auto nccl = open_nccl("libno_nccl.so.2");
  ASSERT_FALSE(nccl);
  EXPECT_EQ(nccl.error().code(), Code::kNotFound);
  EXPECT_THAT(nccl.error().message(), HasSubstr("libno_nccl.so.2"));
}

TEST(Nccl, AnOldLibraryIsNamedWithItsVersion) {
  const auto nccl = open_nccl(AMXT_TEST_STUBS_DIR "/old/libnccl.so.2");
  ASSERT_FALSE(nccl);
  EXPECT_EQ(nccl.error().code(), Code::kUnsupported);
  EXPECT_THAT(nccl.error().message(), HasSubstr("is NCCL 2.10.3, and 2.14.0 or newer is needed"));
}

TEST(Nccl, AMissingFunctionIsNamed) {
  const auto nccl = open_nccl(AMXT_TEST_STUBS_DIR "/partial/libnccl.so.2");
  ASSERT_FALSE(nccl);
  EXPECT_EQ(nccl.error().code(), Code::kUnsupported);
  EXPECT_THAT(nccl.error().message(), HasSubstr("has no function ncclReduceScatter"));
}

TEST(Nccl, AnotherLibraryIsNoNccl) {
  const auto nccl = open_nccl("libm.so.6");
  ASSERT_FALSE(nccl);
  EXPECT_THAT(nccl.error().message(), HasSubstr("has no function ncclGetVersion"));
  const auto cuda = open_cuda("libm.so.6");
  ASSERT_FALSE(cuda);
  EXPECT_EQ(cuda.error().code(), Code::kUnsupported);
  EXPECT_THAT(cuda.error().message(), HasSubstr("has no function cuInit"));
}

TEST(Nccl, VersionsBeforeAndAfter29AreRead) {
  Nccl nccl{};
  nccl.version_code = 2708;
  EXPECT_EQ(nccl.version(), "2.7.8");
  nccl.version_code = 23007;
  EXPECT_EQ(nccl.version(), "2.30.7");
}

TEST(Nccl, HasTheNumbersOfItsHeader) {
  EXPECT_EQ(nccl_type(DType::kU8), 1);
  EXPECT_EQ(nccl_type(DType::kI32), 2);
  EXPECT_EQ(nccl_type(DType::kI64), 4);
  EXPECT_EQ(nccl_type(DType::kF16), 6);
  EXPECT_EQ(nccl_type(DType::kF32), 7);
  EXPECT_EQ(nccl_type(DType::kBF16), 9);
  EXPECT_EQ(nccl_type(DType::kF64), -1);
  EXPECT_EQ(nccl_op(ReduceOp::kSum), 0);
  EXPECT_EQ(nccl_op(ReduceOp::kMax), 2);
  EXPECT_EQ(nccl_op(ReduceOp::kMin), 3);
  EXPECT_EQ(nccl_op(ReduceOp::kAvg), 4);
}

TEST(Nccl, VariablesNameOtherLibraries) {
  unsetenv("AMXTRAIN_NCCL_LIBRARY");
  unsetenv("AMXTRAIN_CUDA_LIBRARY");
  EXPECT_EQ(nccl_library_name(), "libnccl.so.2");
  EXPECT_EQ(cuda_library_name(), "libcuda.so.1");
  setenv("AMXTRAIN_NCCL_LIBRARY", "/a/libnccl.so", 1);
  setenv("AMXTRAIN_CUDA_LIBRARY", "/a/libcuda.so", 1);
  EXPECT_EQ(nccl_library_name(), "/a/libnccl.so");
  EXPECT_EQ(cuda_library_name(), "/a/libcuda.so");
  unsetenv("AMXTRAIN_NCCL_LIBRARY");
  unsetenv("AMXTRAIN_CUDA_LIBRARY");
}

}  // namespace
}  // namespace amxt::comm
