#include "base/dynamic_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>

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

TEST(RequiredFunctions, TellsTheFirstThatIsMissing) {
  auto library = DynamicLibrary::open("libm.so.6");
  ASSERT_TRUE(library) << library.error().message();
  RequiredFunctions required(&*library);
  double (*function)(double) = nullptr;
  required.load("cos", &function);
  EXPECT_TRUE(required.check());
  required.load("first_one", &function);
  required.load("second_one", &function);
  required.load("sin", &function);
  const Status status = required.check();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kUnsupported);
  EXPECT_THAT(status.error().message(),
              ::testing::AllOf(::testing::HasSubstr("libm.so.6"),
                               ::testing::EndsWith("has no function first_one")));
}

int loads = 0;

Result<std::unique_ptr<std::string>> load_text(const std::string& name) {
  ++loads;
  if (name.empty()) return Error(Code::kNotFound, "no name");
  return std::make_unique<std::string>("of " + name);
}

TEST(LoadOnce, LoadsOncePerNameAndTriesAgainAfterAFailure) {
  const auto first = load_once(std::string("a"), load_text);
  const auto again = load_once(std::string("a"), load_text);
  ASSERT_TRUE(first && again);
  EXPECT_EQ(**first, "of a");
  EXPECT_EQ(*first, *again);
  EXPECT_EQ(loads, 1);
  EXPECT_FALSE(load_once(std::string(), load_text));
  EXPECT_FALSE(load_once(std::string(), load_text));
  EXPECT_EQ(loads, 3);
}

TEST(LibraryName, IsTheVariablesUnlessThatIsEmpty) {
  setenv("AMXTRAIN_TEST_LIBRARY", "libother.so", 1);
  EXPECT_EQ(library_name("AMXTRAIN_TEST_LIBRARY", "libusual.so"), "libother.so");
  setenv("AMXTRAIN_TEST_LIBRARY", "", 1);
  EXPECT_EQ(library_name("AMXTRAIN_TEST_LIBRARY", "libusual.so"), "libusual.so");
  unsetenv("AMXTRAIN_TEST_LIBRARY");
  EXPECT_EQ(library_name("AMXTRAIN_TEST_LIBRARY", "libusual.so"), "libusual.so");
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
