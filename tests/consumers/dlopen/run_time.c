/* Links nothing: opens the library at run time, twice, and calls it through pointers. */
#define _GNU_SOURCE
#include <amxtrain.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef int32_t (*version_fn)(void);
typedef const char* (*text_fn)(void);
typedef amxt_status (*create_fn)(const amxt_runtime_options*, amxt_runtime**, amxt_error*);
typedef void (*destroy_fn)(amxt_runtime*);

static void* open_library(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fprintf(stderr, "%s\n", dlerror());
  return library;
}

/* POSIX gives functions as void*; the copy keeps the compiler content. */
static int find(void* library, const char* name, void* function, size_t size) {
  void* symbol = dlsym(library, name);
  if (symbol == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 0;
  }
  memcpy(function, &symbol, size);
  return 1;
}

static int use(void* library) {
  version_fn version;
  text_fn build_info, cpu_info;
  create_fn create;
  destroy_fn destroy;
  amxt_runtime* first = NULL;
  amxt_runtime* second = NULL;
  amxt_error err = AMXT_ERROR_INIT;

  if (!find(library, "amxt_version", &version, sizeof version) ||
      !find(library, "amxt_build_info", &build_info, sizeof build_info) ||
      !find(library, "amxt_cpu_info", &cpu_info, sizeof cpu_info) ||
      !find(library, "amxt_runtime_create", &create, sizeof create) ||
      !find(library, "amxt_runtime_destroy", &destroy, sizeof destroy))
    return 0;
  if (version() != AMXT_VERSION || build_info()[0] != '{' || cpu_info()[0] != '{') {
    fprintf(stderr, "version %d, expected %d\n", (int)version(), AMXT_VERSION);
    return 0;
  }
  /* Two runtimes in one process. */
  if (create(NULL, &first, &err) != AMXT_OK || create(NULL, &second, &err) != AMXT_OK) {
    fprintf(stderr, "%s\n", err.message);
    return 0;
  }
  destroy(first);
  destroy(second);
  return 1;
}

int main(int argc, char** argv) {
  void* library;
  if (argc != 2) return 2;
  library = open_library(argv[1]);
  if (library == NULL || !use(library)) return 1;
  /* Names of the insides must not be reachable. */
  if (dlsym(library, "dnnl_version") != NULL) {
    fprintf(stderr, "a dependency's symbol is visible\n");
    return 1;
  }
  dlclose(library);
  library = open_library(argv[1]);
  if (library == NULL || !use(library)) return 1;
  dlclose(library);
  printf("opened and closed twice\n");
  return 0;
}
