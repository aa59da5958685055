#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/text.h"

namespace amxt {
namespace {

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/amxt-file-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    set_file_fault({});
    ASSERT_TRUE(remove_tree(folder_).ok());
  }
  std::string at(const std::string& name) const { return join_path(folder_, name); }
  void write(const std::string& name, std::string_view text) {
    auto file = File::create(at(name));
    ASSERT_TRUE(file.ok()) << file.error().message();
    ASSERT_TRUE(file->write_at(0, std::as_bytes(std::span(text))).ok());
  }
  std::string folder_;
};

TEST_F(FileTest, ReadsWhatWasWrittenAtItsOffset) {
  write("f", "0123456789");
  auto file = File::open_read(at("f"));
  ASSERT_TRUE(file.ok());
  std::string text(4, ' ');
  ASSERT_TRUE(file->read_at(3, std::as_writable_bytes(std::span(text))).ok());
  EXPECT_EQ(text, "3456");
  const Status early = file->read_at(8, std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(early.error().code(), Code::kCorrupt);
  EXPECT_NE(early.error().message().find("offset 10, 2 bytes too early"), std::string::npos)
      << early.error().message();
}

TEST_F(FileTest, AFifoIsRefusedAtOnceAndNamed) {
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  const auto file = File::open_read(at("pipe"));
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.error().message().find("is a FIFO, not a regular file"), std::string::npos)
      << file.error().message();
  EXPECT_NE(File::open_read(folder_).error().message().find("is a directory"), std::string::npos);
  EXPECT_NE(File::open_read("/dev/zero").error().message().find("is a character device"),
            std::string::npos);
}

TEST_F(FileTest, ANameFromAnIndexCannotLeaveItsDirectory) {
  write("inside", "x");
  ASSERT_TRUE(make_directory(at("models")).ok());
  ASSERT_EQ(symlink("../inside", at("models/escape").c_str()), 0);
  EXPECT_TRUE(File::open_read_beneath(folder_, "inside").ok());
  for (const std::string name : {"../inside", "/etc/passwd", "..", ".", "", "models/escape"}) {
    EXPECT_EQ(File::open_read_beneath(at("models"), name).error().code(), Code::kFormat) << name;
  }
  EXPECT_EQ(File::open_read_beneath(at("models"), "escape").error().code(), Code::kFormat);
}

TEST_F(FileTest, CreateRefusesWhatIsThere) {
  write("f", "x");
  EXPECT_EQ(File::create(at("f")).error().code(), Code::kExists);
}

TEST_F(FileTest, WhatCannotBeMadeIsSaidToBeADirectoryOrAFile) {
  set_file_fault([](std::string_view operation, const std::string&) {
    return operation == "create" ? EACCES : 0;
  });
  const Status directory = make_directories(at("a/b"));
  const auto file = File::create(at("f"));
  set_file_fault({});
  EXPECT_EQ(directory.error().message(),
            quote(at("a")) + ": making the directory: Permission denied");
  EXPECT_EQ(file.error().message(), quote(at("f")) + ": making the file: Permission denied");
}

TEST_F(FileTest, DirectoriesMadeForNothingGoAndOthersStay) {
  ASSERT_TRUE(make_directories(at("mine")).ok());
  const std::vector<std::string> made = missing_directories(at("mine/a/b"));
  EXPECT_EQ(made, (std::vector<std::string>{at("mine/a/b"), at("mine/a")}));
  ASSERT_TRUE(make_directories(at("mine/a/b")).ok());
  remove_if_empty(made);
  EXPECT_FALSE(path_exists(at("mine/a")));
  EXPECT_TRUE(path_exists(at("mine")));
  ASSERT_TRUE(make_directories(at("mine/a/b")).ok());
  write("mine/a/kept", "x");
  remove_if_empty(made);
  EXPECT_FALSE(path_exists(at("mine/a/b")));
  EXPECT_TRUE(path_exists(at("mine/a/kept")));
  EXPECT_TRUE(missing_directories(at("mine")).empty());
}

TEST_F(FileTest, AnAtomicWriteThatFailsLeavesTheOldText) {
  ASSERT_TRUE(write_text_file_atomically(at("f"), "old").ok());
  for (const char* operation : {"create", "write", "sync", "rename"}) {
    set_file_fault(
        [&](std::string_view op, const std::string&) { return op == operation ? ENOSPC : 0; });
    EXPECT_EQ(write_text_file_atomically(at("f"), "new").error().code(), Code::kNoSpace)
        << operation;
    set_file_fault({});
    EXPECT_EQ(read_text_file(at("f"), 100).value(), "old") << operation;
  }
  ASSERT_TRUE(write_text_file_atomically(at("f"), "new").ok());
  EXPECT_EQ(read_text_file(at("f"), 100).value(), "new");
}

TEST_F(FileTest, AnAtomicWriteIsOnDiskBeforeItHasItsNameAndItsNameThen) {
  std::vector<std::string> operations;
  set_file_fault([&](std::string_view operation, const std::string& path) {
    operations.push_back(std::string(operation) + " " + (path == folder_ ? "." : base_name(path)));
    return 0;
  });
  ASSERT_TRUE(write_text_file_atomically(at("f"), "text").ok());
  set_file_fault({});
  EXPECT_EQ(operations, (std::vector<std::string>{"create f.tmp", "write f.tmp", "sync f.tmp",
                                                  "rename f", "sync_directory ."}));
}

TEST_F(FileTest, WhatIsAppendedStandsBehindWhatIsThere) {
  write("f", "one\n");
  const auto file = File::open_append(at("f"));
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_TRUE(file->is_regular());
  EXPECT_TRUE(file->append("two\n").ok());
  EXPECT_TRUE(file->truncate(6).ok());
  EXPECT_TRUE(file->append("!").ok());
  EXPECT_EQ(read_text_file(at("f"), 100).value(), "one\ntw!");
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  EXPECT_FALSE(File::open_append(at("pipe")).value().is_regular());
}

TEST_F(FileTest, ASmallFileLongerThanItsLimitIsRefusedUnread) {
  write("f", "0123456789");
  EXPECT_EQ(read_text_file(at("f"), 9).error().code(), Code::kFormat);
  EXPECT_EQ(read_text_file(at("f"), 10).value(), "0123456789");
}

TEST_F(FileTest, SymlinksAreReplacedInOneStep) {
  ASSERT_TRUE(replace_symlink("step-000001", at("latest")).ok());
  ASSERT_TRUE(replace_symlink("step-000002", at("latest")).ok());
  EXPECT_EQ(read_symlink(at("latest")).value(), "step-000002");
}

TEST_F(FileTest, RemovingATreeDoesNotFollowSymlinks) {
  write("keep", "x");
  ASSERT_TRUE(make_directories(at("a/b/c")).ok());
  ASSERT_EQ(symlink(folder_.c_str(), at("a/b/back").c_str()), 0);
  ASSERT_TRUE(remove_tree(at("a")).ok());
  EXPECT_FALSE(path_exists(at("a")));
  EXPECT_TRUE(path_exists(at("keep")));
  EXPECT_TRUE(remove_tree(at("a")).ok()) << "missing is fine";
}

TEST_F(FileTest, PlainNames) {
  EXPECT_TRUE(is_plain_name("model-00001-of-00002.safetensors"));
  for (const std::string name : {"", ".", "..", "a/b", "a b", "a\n"})
    EXPECT_FALSE(is_plain_name(name)) << name;
  EXPECT_EQ(parent_path("/a/b/"), "/a");
  EXPECT_EQ(parent_path("a"), ".");
  EXPECT_EQ(parent_path("/a"), "/");
  EXPECT_EQ(base_name("/a/b/"), "b");
}

}  // namespace
}  // namespace amxt
