#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>

#include "base/text.h"

namespace amxt {
namespace {

FileFault& fault() {
  static FileFault instance;
  return instance;
}

// errno of an injected fault, 0 for none.
int injected(std::string_view operation, const std::string& path) {
  return fault() ? fault()(operation, path) : 0;
}

Error path_error(const std::string& path, int sys_errno) {
  return system_error(quote(path), sys_errno);
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISSOCK(mode)) return "a socket";
  return "not a file";
}

// O_NONBLOCK: opening a FIFO must not wait for a writer.
constexpr int kReadFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

Status require_regular(int fd, const std::string& path) {
  struct stat info{};
  if (fstat(fd, &info) != 0) return path_error(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return Error(Code::kFormat,
                 fmt::format("{}: is {}, not a regular file", quote(path), kind_of(info.st_mode)));
  }
  return {};
}

}  // namespace

File::File(File&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    path_ = std::move(other.path_);
  }
  return *this;
}

Result<File> File::open_read(const std::string& path) {
  if (const int error = injected("read", path)) return path_error(path, error);
  const int fd = ::open(path.c_str(), kReadFlags);
  if (fd < 0) return path_error(path, errno);
  File file(fd, path);
  AMXT_TRY(require_regular(fd, path));
  return file;
}

Result<File> File::open_read_beneath(const std::string& directory, const std::string& name) {
  const std::string path = join_path(directory, name);
  if (name.empty() || name.find('/') != std::string::npos || name == "." || name == ".." ||
      name.find('\0') != std::string::npos) {
    return Error(Code::kFormat, fmt::format("{}: not a plain file name", quote(name)));
  }
  if (const int error = injected("read", path)) return path_error(path, error);
  const int folder = ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return path_error(directory, errno);
  open_how how{};
  how.flags = static_cast<uint64_t>(kReadFlags);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  int fd = static_cast<int>(syscall(SYS_openat2, folder, name.c_str(), &how, sizeof how));
  int error = errno;
  if (fd < 0 && (error == ENOSYS || error == EPERM)) {
    fd = ::openat(folder, name.c_str(), kReadFlags | O_NOFOLLOW);
    error = errno;
  }
  ::close(folder);
  if (fd < 0 && (error == EXDEV || error == ELOOP)) {
    // Model caches keep shards as symlinks to a sibling folder of blobs; the user chose that folder, the index did not.
    return Error(
        Code::kFormat,
        fmt::format(
            "{}: a symbolic link that leaves its directory; put a copy or a hard link in its place",
            quote(path)),
        error);
  }
  if (fd < 0) return path_error(path, error);
  File file(fd, path);
  AMXT_TRY(require_regular(fd, path));
  return file;
}

Result<File> File::create(const std::string& path) {
  const auto failed = [&](int error) {
    return system_error(quote(path) + ": making the file", error);
  };
  if (const int error = injected("create", path)) return failed(error);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return failed(errno);
  return File(fd, path);
}

Result<File> File::open_write(const std::string& path) {
  if (const int error = injected("open", path)) return path_error(path, error);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return path_error(path, errno);
  File file(fd, path);
  AMXT_TRY(require_regular(fd, path));
  return file;
}

Result<File> File::lock_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return path_error(path, errno);
  File directory(fd, path);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return Error(Code::kExists, fmt::format("{}: another job is writing there", quote(path)));
  }
  return directory;
}

Result<File> File::open_append(const std::string& path) {
  if (const int error = injected("create", path)) return path_error(path, error);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return path_error(path, errno);
  return File(fd, path);
}

Result<int64_t> File::size() const {
  struct stat info{};
  if (fstat(fd_, &info) != 0) return path_error(path_, errno);
  return static_cast<int64_t>(info.st_size);
}

Status File::read_at(int64_t offset, std::span<std::byte> data) const {
  if (const int error = injected("read", path_)) return path_error(path_, error);
  while (!data.empty()) {
    const ssize_t n = ::pread(fd_, data.data(), data.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return path_error(path_, errno);
    if (n == 0) {
      return Error(Code::kCorrupt,
                   fmt::format("{}: ends at offset {}, {} too early", quote(path_), offset,
                               counted(static_cast<int64_t>(data.size()), "byte")));
    }
    data = data.subspan(static_cast<size_t>(n));
    offset += n;
  }
  return {};
}

Status File::write_at(int64_t offset, std::span<const std::byte> data) const {
  if (const int error = injected("write", path_)) return path_error(path_, error);
  while (!data.empty()) {
    const ssize_t n = ::pwrite(fd_, data.data(), data.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return path_error(path_, errno);
    data = data.subspan(static_cast<size_t>(n));
    offset += n;
  }
  return {};
}

Status File::append(std::string_view text) const {
  if (const int error = injected("write", path_)) return path_error(path_, error);
  while (!text.empty()) {
    const ssize_t n = ::write(fd_, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return path_error(path_, errno);
    text.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

Status File::reserve(int64_t bytes) const {
  if (const int error = injected("reserve", path_)) return path_error(path_, error);
  if (bytes <= 0) return {};
  if (::fallocate(fd_, 0, 0, bytes) == 0) return {};
  if (errno == EOPNOTSUPP || errno == ENOSYS) return truncate(bytes);
  return path_error(path_, errno);
}

Status File::truncate(int64_t bytes) const {
  if (::ftruncate(fd_, bytes) != 0) return path_error(path_, errno);
  return {};
}

bool File::is_regular() const {
  struct stat info{};
  return fstat(fd_, &info) == 0 && S_ISREG(info.st_mode);
}

Status File::sync() const {
  if (const int error = injected("sync", path_)) return path_error(path_, error);
  if (::fsync(fd_) != 0) return path_error(path_, errno);
  return {};
}

void File::no_readahead() const { posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM); }

void File::drop_cache() const { posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

void File::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Result<std::string> read_text_file(const std::string& path, int64_t limit) {
  AMXT_ASSIGN(File file, File::open_read(path));
  AMXT_ASSIGN(const int64_t size, file.size());
  if (size > limit) {
    return Error(Code::kFormat,
                 fmt::format("{}: {} bytes, more than the {} that such a file may have",
                             quote(path), size, limit));
  }
  std::string text(static_cast<size_t>(size), '\0');
  AMXT_TRY(file.read_at(0, std::as_writable_bytes(std::span(text))));
  return text;
}

Status write_text_file_atomically(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp";
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT) return path_error(temporary, errno);
  {
    AMXT_ASSIGN(File file, File::create(temporary));
    AMXT_TRY(file.write_at(0, std::as_bytes(std::span(text))));
    AMXT_TRY(file.sync());
  }
  AMXT_TRY(rename_path(temporary, path));
  return sync_directory(parent_path(path));
}

Status make_directory(const std::string& path) {
  const auto failed = [&](int error) {
    return system_error(quote(path) + ": making the directory", error);
  };
  if (const int error = injected("create", path)) return failed(error);
  if (::mkdir(path.c_str(), 0755) == 0) return {};
  const int error = errno;
  if (error == EEXIST && is_directory(path)) return {};
  if (error == EEXIST)
    return Error(Code::kExists, fmt::format("{}: exists and is not a directory", quote(path)),
                 error);
  return failed(error);
}

Status make_directories(const std::string& path) {
  if (is_directory(path)) return {};
  const std::string parent = parent_path(path);
  if (parent != path && !path_exists(parent)) AMXT_TRY(make_directories(parent));
  return make_directory(path);
}

std::vector<std::string> missing_directories(const std::string& path) {
  std::vector<std::string> missing;
  for (std::string at = path; !path_exists(at); at = parent_path(at)) missing.push_back(at);
  return missing;
}

void remove_if_empty(const std::vector<std::string>& directories) {
  for (const std::string& directory : directories) {
    if (::rmdir(directory.c_str()) != 0 && errno != ENOENT) return;
  }
}

Status sync_directory(const std::string& path) {
  if (const int error = injected("sync_directory", path)) return path_error(path, error);
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return path_error(path, errno);
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  if (result != 0 && error != EINVAL) return path_error(path, error);
  return {};
}

Status rename_path(const std::string& from, const std::string& to) {
  if (const int error = injected("rename", to)) return path_error(to, error);
  if (::rename(from.c_str(), to.c_str()) != 0) return path_error(to, errno);
  return {};
}

Status exchange_paths(const std::string& a, const std::string& b) {
  int error = injected("exchange", b);
  if (error == 0 && ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) != 0)
    error = errno;
  if (error == 0) return {};
  if (error == ENOSYS || error == EINVAL || error == EOPNOTSUPP) {
    return Error(Code::kUnsupported,
                 fmt::format("{}: the file system exchanges no names", quote(b)), error);
  }
  return path_error(b, error);
}

Status remove_tree(const std::string& path) {
  if (const int error = injected("remove", path)) return path_error(path, error);
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return path_error(path, errno);
  }
  if (!S_ISDIR(info.st_mode)) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return path_error(path, errno);
    return {};
  }
  AMXT_ASSIGN(const std::vector<std::string> names, list_directory(path));
  for (const std::string& name : names) AMXT_TRY(remove_tree(join_path(path, name)));
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) return path_error(path, errno);
  return {};
}

Status replace_symlink(const std::string& target, const std::string& path) {
  if (const int error = injected("symlink", path)) return path_error(path, error);
  const std::string temporary = path + ".tmp";
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT) return path_error(temporary, errno);
  if (::symlink(target.c_str(), temporary.c_str()) != 0) return path_error(temporary, errno);
  if (Status renamed = rename_path(temporary, path); !renamed) {
    ::unlink(temporary.c_str());
    return renamed;
  }
  return sync_directory(parent_path(path));
}

Result<std::string> read_symlink(const std::string& path) {
  std::string target(4096, '\0');
  const ssize_t n = ::readlink(path.c_str(), target.data(), target.size());
  if (n < 0) return path_error(path, errno);
  target.resize(static_cast<size_t>(n));
  return target;
}

Result<std::vector<std::string>> list_directory(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (!folder) return path_error(path, errno);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  if (errno != 0) return path_error(path, errno);
  std::sort(names.begin(), names.end());
  return names;
}

bool path_exists(const std::string& path) {
  struct stat info{};
  return ::lstat(path.c_str(), &info) == 0;
}

bool is_directory(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool is_plain_name(std::string_view name) {
  if (name.empty() || name == "." || name == ".." || name.size() > 255) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

Result<int64_t> free_bytes(const std::string& directory) {
  struct statvfs info{};
  if (::statvfs(directory.c_str(), &info) != 0) return path_error(directory, errno);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

std::string join_path(std::string_view folder, std::string_view name) {
  if (folder.empty()) return std::string(name);
  std::string path(folder);
  if (path.back() != '/') path += '/';
  return path.append(name);
}

std::string base_name(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

std::string parent_path(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return std::string(slash == 0 ? "/" : path.substr(0, slash));
}

void set_file_fault(FileFault value) { fault() = std::move(value); }

}  // namespace amxt
