// DynamicLibrary: a shared library opened at run time, for what may be missing on a machine: drivers, NCCL.
#pragma once

#include <string>
#include <utility>

#include "base/result.h"

namespace amxt {

class DynamicLibrary {
 public:
  // By soname or path; its symbols stay private. kNotFound when the loader finds none of that name or path, with what the loader said.
  static Result<DynamicLibrary> open(const std::string& name);

  DynamicLibrary() = default;
  ~DynamicLibrary();
  DynamicLibrary(DynamicLibrary&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), path_(std::move(other.path_)) {}
  DynamicLibrary& operator=(DynamicLibrary&& other) noexcept;

  // Null when it has none of that name.
  void* symbol(const char* name) const;
  // Sets `function` to the one of that name; null when there is none, and the result says so.
  template <typename Function>
  bool load(const char* name, Function** function) const {
    *function = reinterpret_cast<Function*>(symbol(name));
    return *function != nullptr;
  }
  // The file that was opened.
  const std::string& path() const { return path_; }

 private:
  void* handle_ = nullptr;
  std::string path_;
};

}  // namespace amxt
