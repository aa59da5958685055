# Third-party libraries. docs/dependencies.md says what each is for.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(hwloc REQUIRED IMPORTED_TARGET hwloc)
pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(libxxhash REQUIRED IMPORTED_TARGET libxxhash)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(nlohmann_json 3.10 CONFIG REQUIRED)
find_package(fmt 9 CONFIG QUIET)
if(NOT fmt_FOUND)
  find_package(fmt 10 CONFIG REQUIRED)
endif()

# fmt is compiled into the library once: header-only costs four seconds for each file that includes
# it, and the system's shared one would be a dependency of every program that links amxtrain.
get_target_property(AMXT_FMT_INCLUDE fmt::fmt-header-only INTERFACE_INCLUDE_DIRECTORIES)
if(fmt_VERSION VERSION_LESS 11)
  add_library(amxt_fmt STATIC "${PROJECT_SOURCE_DIR}/cmake/fmt.cpp")
  target_include_directories(amxt_fmt SYSTEM PUBLIC ${AMXT_FMT_INCLUDE})
  target_compile_features(amxt_fmt PUBLIC cxx_std_20)
else()
  add_library(amxt_fmt INTERFACE)
  target_link_libraries(amxt_fmt INTERFACE fmt::fmt-header-only)
endif()

# What every rung may use.
add_library(amxt_third_party INTERFACE)
target_link_libraries(amxt_third_party INTERFACE
  amxt_fmt nlohmann_json::nlohmann_json PkgConfig::hwloc PkgConfig::liburing PkgConfig::libxxhash
  OpenSSL::Crypto Threads::Threads ${CMAKE_DL_LIBS})

# oneDNN is opened at run time, under a name of our own: only its headers are needed to build.
set(AMXT_DNNL_FILE "libamxtrain-dnnl.so.3")
set(AMXT_HAVE_DNNL 0)
add_library(amxt_dnnl_headers INTERFACE)
if(AMXT_ONEDNN MATCHES "^(auto|system)$")
  find_package(dnnl 3.6 CONFIG QUIET)
  if(dnnl_FOUND)
    get_target_property(include DNNL::dnnl INTERFACE_INCLUDE_DIRECTORIES)
    get_target_property(library DNNL::dnnl LOCATION)
    file(REAL_PATH "${library}" library)
    file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/deps")
    find_program(AMXT_PATCHELF patchelf REQUIRED)
    set(AMXT_DNNL_LIBRARY "${PROJECT_BINARY_DIR}/deps/${AMXT_DNNL_FILE}")
    if("${library}" IS_NEWER_THAN "${AMXT_DNNL_LIBRARY}")
      file(COPY_FILE "${library}" "${AMXT_DNNL_LIBRARY}.part")
      execute_process(COMMAND "${AMXT_PATCHELF}" --set-soname "${AMXT_DNNL_FILE}"
                              "${AMXT_DNNL_LIBRARY}.part" COMMAND_ERROR_IS_FATAL ANY)
      file(RENAME "${AMXT_DNNL_LIBRARY}.part" "${AMXT_DNNL_LIBRARY}")
    endif()
    set(AMXT_HAVE_DNNL 1)
    set(AMXT_DNNL_ORIGIN "oneDNN ${dnnl_VERSION} of the system")
  endif()
endif()
if(NOT AMXT_HAVE_DNNL AND AMXT_ONEDNN MATCHES "^(auto|fetched)$"
   AND EXISTS "${AMXT_DEPS_DIR}/onednn/complete")
  set(include "${AMXT_DEPS_DIR}/onednn/include")
  set(AMXT_DNNL_LIBRARY "${AMXT_DEPS_DIR}/onednn/lib/${AMXT_DNNL_FILE}")
  set(AMXT_HAVE_DNNL 1)
  set(AMXT_DNNL_ORIGIN "oneDNN of ${AMXT_DEPS_DIR}/onednn")
endif()
target_compile_definitions(amxt_dnnl_headers INTERFACE
  AMXT_HAVE_DNNL=${AMXT_HAVE_DNNL} AMXT_DNNL_FILE="${AMXT_DNNL_FILE}")
if(AMXT_HAVE_DNNL)
  target_include_directories(amxt_dnnl_headers SYSTEM INTERFACE ${include})
  # The library looks for it beside itself, so it lies in lib/ of the build as it does when installed;
  # unit tests are linked statically and look beside the test.
  foreach(folder lib tests)
    file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/${folder}")
    file(CREATE_LINK "${AMXT_DNNL_LIBRARY}" "${PROJECT_BINARY_DIR}/${folder}/${AMXT_DNNL_FILE}" SYMBOLIC)
  endforeach()
  message(STATUS "Matrix products: ${AMXT_DNNL_ORIGIN}")
elseif(AMXT_ONEDNN STREQUAL "off" OR AMXT_ONEDNN STREQUAL "auto")
  message(STATUS "Matrix products: no oneDNN >= 3.6 (tools/fetch-onednn.sh gets one); own kernels only")
else()
  message(FATAL_ERROR "AMXT_ONEDNN=${AMXT_ONEDNN}, and no oneDNN >= 3.6 was found there")
endif()

# Gloo is reached through a module of our own, opened at run time: the library is never linked to it.
set(AMXT_HAVE_GLOO 0)
if(NOT AMXT_GLOO STREQUAL "off")
  find_package(Gloo CONFIG QUIET)
  if(Gloo_FOUND AND TARGET gloo)
    set(AMXT_HAVE_GLOO 1)
    # Since 2025 an event handler is given the loop.
    include(CheckCXXSourceCompiles)
    get_target_property(CMAKE_REQUIRED_INCLUDES gloo INTERFACE_INCLUDE_DIRECTORIES)
    check_cxx_source_compiles("
      #include <gloo/transport/tcp/loop.h>
      struct H : gloo::transport::tcp::Handler {
        void handleEvents(gloo::transport::tcp::Loop&, int) override {}
      };
      int main() { H h; (void)h; }" AMXT_GLOO_EVENTS_WITH_LOOP)
    unset(CMAKE_REQUIRED_INCLUDES)
    message(STATUS "Between nodes: Gloo")
  elseif(AMXT_GLOO STREQUAL "on")
    message(FATAL_ERROR "AMXT_GLOO=on, and no Gloo was found (Debian: libgloo-dev)")
  else()
    message(STATUS "Between nodes: no Gloo found; several nodes can't train together")
  endif()
endif()
