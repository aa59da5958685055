#include "base/dynamic_library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <link.h>

#include <cstdlib>

#include "base/text.h"

namespace amxt {
namespace {

int flags_of(DynamicLibrary::Binding binding) {
  const int usual = RTLD_NOW | RTLD_LOCAL;
#if defined(AMXT_SANITIZED) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  (void)binding;  // sanitizers can't see behind RTLD_DEEPBIND
  return usual;
#else
  return binding == DynamicLibrary::Binding::kOwn ? usual | RTLD_DEEPBIND : usual;
#endif
}

}  // namespace

Result<DynamicLibrary> DynamicLibrary::open(const std::string& name, Binding binding) {
  DynamicLibrary library;
  library.handle_ = dlopen(name.c_str(), flags_of(binding));
  if (library.handle_ == nullptr) {
    const char* error = dlerror();  // begins with the name
    return Error(Code::kNotFound, error != nullptr ? error : quote(name) + " could not be opened");
  }
  library.path_ = name;
  link_map* map = nullptr;
  if (dlinfo(library.handle_, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr &&
      map->l_name != nullptr && *map->l_name != '\0') {
    library.path_ = map->l_name;
  }
  return library;
}

DynamicLibrary::~DynamicLibrary() {
  if (handle_ != nullptr) dlclose(handle_);
}

DynamicLibrary& DynamicLibrary::operator=(DynamicLibrary&& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(path_, other.path_);
  return *this;
}

void* DynamicLibrary::symbol(const char* name) const {
  return handle_ != nullptr ? dlsym(handle_, name) : nullptr;
}

Status RequiredFunctions::check() const {
  if (missing_ == nullptr) return {};
  return Error(Code::kUnsupported,
               fmt::format("{} has no function {}", quote(library_->path()), missing_));
}

std::string library_name(const char* variable, const std::string& usual) {
  const char* wished = std::getenv(variable);
  return wished != nullptr && *wished != '\0' ? wished : usual;
}

}  // namespace amxt
