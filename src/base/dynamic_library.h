// DynamicLibrary: a shared library opened at run time, for what may be missing on a machine: drivers, NCCL.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "base/result.h"

namespace amxt {

class DynamicLibrary {
 public:
  // kOwn: what the library needs it takes from itself and its own dependencies before the host's.
  enum class Binding { kUsual, kOwn };
  // By soname or path; its symbols stay private. kNotFound when the loader finds none of that name or path, with what the loader said.
  static Result<DynamicLibrary> open(const std::string& name, Binding binding = Binding::kUsual);

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

// Takes the functions that a library can't be used without, and remembers the first that it lacks.
class RequiredFunctions {
 public:
  explicit RequiredFunctions(const DynamicLibrary* library) : library_(library) {}
  template <typename Function>
  void load(const char* name, Function** function) {
    if (!library_->load(name, function) && missing_ == nullptr) missing_ = name;
  }
  // kUnsupported, naming library and function, when one is missing.
  Status check() const;

 private:
  const DynamicLibrary* library_;
  const char* missing_ = nullptr;
};

// What `load` makes of the library of that name, once per process. It stays: such a library may have threads of its own, and the host may
// use it too. A failure is tried again by the next call.
template <typename Loaded>
Result<const Loaded*> load_once(const std::string& name,
                                Result<std::unique_ptr<Loaded>> (*load)(const std::string& name)) {
  static std::mutex mutex;
  static auto* const all = new std::map<std::string, std::unique_ptr<Loaded>>();
  const std::lock_guard lock(mutex);
  std::unique_ptr<Loaded>& slot = (*all)[name];
  if (!slot) {
    AMXT_ASSIGN(slot, load(name));
  }
  return slot.get();
}

// The library that the environment variable names, or else the usual one.
std::string library_name(const char* variable, const std::string& usual);

}  // namespace amxt
