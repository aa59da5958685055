#include "base/dynamic_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace amxt {
namespace {

TEST(DynamicLibrary, GivesTheFunctionsOfALibraryAndItsFile) {
  auto library = DynamicLibrary::open("libm.so.6");
  ASSERT_TRUE(library) << library.error().message();
  double (*cosine)(double) = nullptr;
  ASSERT_TRUE(library->load("cos", &cosine));
  EXPECT_EQ(cosine(0.0), 1.0);
  EXPECT_THAT(library->path(), ::testing::EndsWith("libm.so.6"));
  EXPECT_THAT(library->path(), ::testing::StartsWith("/"));
  EXPECT_FALSE(library->load("no_such_function", &cosine));
  EXPECT_EQ(cosine, nullptr);
}

TEST(DynamicLibrary, NamesOneThatIsMissing) {
  auto library = DynamicLibrary::open("libno_such_library.so.7");
  ASSERT_FALSE(library);
  EXPECT_EQ(library.error().code(), Code::kNotFound);
  EXPECT_THAT(library.error().message(), ::testing::HasSubstr("libno_such_library.so.7"));
}

TEST(DynamicLibrary, MovesWithItsHandle) {
  auto opened = DynamicLibrary::open("libm.so.6");
  ASSERT_TRUE(opened);
  DynamicLibrary first = std::move(opened).value();
  DynamicLibrary second;
  EXPECT_EQ(second.symbol("cos"), nullptr);
  second = std::move(first);
  EXPECT_NE(second.symbol("cos"), nullptr);
}

}  // namespace
}  // namespace amxt
