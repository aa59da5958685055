// Files: owned descriptors, reads and writes at an offset that never come back short, durable renames.
//
// All writing of checkpoints, exports and token files goes through here, so that tests can make a named operation fail
// (file_fault) and a system-call trace shows one order of fsync and rename.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace amxt {

class File {
 public:
  File() = default;
  ~File() { close(); }
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  // A regular file for reading; a FIFO, device or directory is an error that names what it is and never blocks.
  static Result<File> open_read(const std::string& path);
  // The same, below an open directory, one path component, no symlink out of `directory` (openat2 RESOLVE_BENEATH where the
  // kernel has it). `name` must be a base name.
  static Result<File> open_read_beneath(const std::string& directory, const std::string& name);
  // A new file for writing (O_EXCL: an existing one is kExists), mode 0644 less umask.
  static Result<File> create(const std::string& path);
  // An existing regular file for writing in place, not through a symlink; for files that several processes fill together.
  static Result<File> open_write(const std::string& path);
  // Holds the directory as long as the result lives: kExists while another process does. A file system that knows no locks lets all in.
  static Result<File> lock_directory(const std::string& path);
  // Opens or creates for appending; for metrics.
  static Result<File> open_append(const std::string& path);

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  Result<int64_t> size() const;

  // Exactly data.size() bytes at `offset`; a file that ends earlier is kCorrupt naming path and offset.
  Status read_at(int64_t offset, std::span<std::byte> data) const;
  Status write_at(int64_t offset, std::span<const std::byte> data) const;
  Status append(std::string_view text) const;
  // Reserves space, so that a full disk shows before the data is written.
  Status reserve(int64_t bytes) const;
  Status truncate(int64_t bytes) const;
  bool is_regular() const;
  Status sync() const;
  // Drops the file's pages from the page cache (after sync); keeps a training node's memory for training.
  void drop_cache() const;
  // Tells the system to read nothing beyond what is asked for: it may belong to another rank, or to nobody.
  void no_readahead() const;
  void close();

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

// The whole of a small file; longer than `limit` bytes is kFormat with the size.
Result<std::string> read_text_file(const std::string& path, int64_t limit);
// Writes `path`.tmp, syncs, renames over `path`, syncs the folder.
Status write_text_file_atomically(const std::string& path, std::string_view text);

Status make_directory(const std::string& path);    // an existing one is fine
Status make_directories(const std::string& path);  // with parents
// Those that make_directories(path) would make, the deepest first; and takes such ones away again up to the first that is not empty.
std::vector<std::string> missing_directories(const std::string& path);
void remove_if_empty(const std::vector<std::string>& directories);
Status sync_directory(const std::string& path);
Status rename_path(const std::string& from, const std::string& to);
// Two paths change places in one step; kUnsupported where the file system can't.
Status exchange_paths(const std::string& a, const std::string& b);
Status remove_tree(const std::string& path);  // missing is fine; does not follow symlinks
// Symlink `path` -> `target` (relative), replaced atomically.
Status replace_symlink(const std::string& target, const std::string& path);
Result<std::string> read_symlink(const std::string& path);
Result<std::vector<std::string>> list_directory(const std::string& path);  // base names, sorted
bool path_exists(const std::string& path);
bool is_directory(const std::string& path);
// Base name of letters, digits, '.', '_', '-' only, not "." or "..".
bool is_plain_name(std::string_view name);
Result<int64_t> free_bytes(const std::string& directory);
std::string join_path(std::string_view folder, std::string_view name);
std::string base_name(std::string_view path);
std::string parent_path(std::string_view path);

// For tests: called before each operation with its name ("create", "write", "reserve", "sync", "sync_directory", "rename",
// "exchange", "symlink", "remove", "read", "open") and path; a non-zero return is taken as that errno. Process-wide; empty in production.
using FileFault = std::function<int(std::string_view operation, const std::string& path)>;
void set_file_fault(FileFault fault);

}  // namespace amxt
