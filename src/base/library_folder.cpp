#include "base/library_folder.h"

#include <dlfcn.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>

namespace amxt {

std::string library_folder() {
  Dl_info info = {};
  std::string path;
  if (dladdr(reinterpret_cast<const void*>(&library_folder), &info) != 0 &&
      info.dli_fname != nullptr) {
    if (char* real = realpath(info.dli_fname, nullptr); real != nullptr) {
      path = real;
      std::free(real);
    }
  }
  if (path.empty()) {  // a program found through PATH has no folder in its name
    char link[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", link, sizeof link);
    if (length > 0) path.assign(link, static_cast<size_t>(length));
  }
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

}  // namespace amxt
