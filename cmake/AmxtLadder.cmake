# The rungs of src/, the shared library over them, the command and the examples.

# amxt_add_ladder(<folder>...), lowest first: each folder is a static library amxt_<folder> that sees
# the rungs below it. Sources are found by name, so that a new file needs no change here. A folder
# without sources yet is an interface library.
function(amxt_add_ladder)
  set(below "")
  foreach(folder IN LISTS ARGN)
    file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/${folder}/*.cpp")
    set(generated "")
    if(folder STREQUAL "base")
      set(generated "${AMXT_COMMIT_SOURCE}")
    endif()
    set(beside amxt_third_party)
    if(folder STREQUAL "kernels")
      list(APPEND beside amxt_dnnl_headers)
    endif()
    if(folder STREQUAL "comm")
      set_source_files_properties("${PROJECT_SOURCE_DIR}/src/comm/gloo_wire.cpp" PROPERTIES
        COMPILE_DEFINITIONS AMXT_HAVE_GLOO=${AMXT_HAVE_GLOO})
    endif()

    if(sources OR generated)
      add_library(amxt_${folder} STATIC ${sources} ${generated})
      target_link_libraries(amxt_${folder} PRIVATE amxt_flags)
      set(scope PUBLIC)
      foreach(source IN LISTS sources)
        amxt_isa_flags(flags "${source}")
        set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${flags}")
      endforeach()
    else()
      add_library(amxt_${folder} INTERFACE)
      set(scope INTERFACE)
    endif()
    target_include_directories(amxt_${folder} ${scope}
      "${PROJECT_SOURCE_DIR}/src" "${AMXT_GENERATED_DIR}")
    target_link_libraries(amxt_${folder} ${scope} ${below} ${beside})
    list(PREPEND below amxt_${folder})
  endforeach()
  add_dependencies(amxt_base amxt_git_commit)
  if(TARGET amxt_capi)
    target_include_directories(amxt_capi ${scope} "${PROJECT_SOURCE_DIR}/include")
  endif()
  if(TARGET amxt_capi AND scope STREQUAL "PUBLIC")
    target_compile_definitions(amxt_capi PRIVATE AMXT_BUILDING_LIBRARY=1)
    # Full types: abidw compares the layout of every public struct.
    target_compile_options(amxt_capi PRIVATE $<$<CONFIG:Release>:-g2>)
  endif()
  set(AMXT_LADDER "${ARGN}" PARENT_SCOPE)
endfunction()

# libamxtrain.so: the objects of all rungs, with only amxt_* visible.
function(amxt_add_shared_library)
  set(objects "")
  foreach(folder IN LISTS AMXT_LADDER)
    get_target_property(type amxt_${folder} TYPE)
    if(type STREQUAL "STATIC_LIBRARY")
      list(APPEND objects "$<TARGET_OBJECTS:amxt_${folder}>")
    endif()
  endforeach()
  if(AMXT_BUILD_FUZZERS)
    return()
  endif()
  set(map "${PROJECT_SOURCE_DIR}/src/capi/amxtrain.map")
  add_library(amxtrain SHARED ${objects})
  set_target_properties(amxtrain PROPERTIES
    LINKER_LANGUAGE CXX
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}
    EXPORT_NAME amxtrain
    LINK_DEPENDS "${map}")
  target_link_libraries(amxtrain PRIVATE amxt_third_party)
  target_link_options(amxtrain PRIVATE
    "LINKER:--version-script=${map}" LINKER:--no-undefined LINKER:--as-needed
    LINKER:--exclude-libs,ALL LINKER:-z,relro,-z,now)
  target_include_directories(amxtrain INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endfunction()

# libamxtrain-gloo.so: the only file that knows Gloo, beside the library and beside the unit tests.
function(amxt_add_gloo_module)
  if(NOT AMXT_HAVE_GLOO OR AMXT_BUILD_FUZZERS)
    return()
  endif()
  set(map "${PROJECT_SOURCE_DIR}/src/comm/gloo/gloo_module.map")
  add_library(amxtrain_gloo MODULE "${PROJECT_SOURCE_DIR}/src/comm/gloo/gloo_module.cpp")
  set_target_properties(amxtrain_gloo PROPERTIES OUTPUT_NAME amxtrain-gloo LINK_DEPENDS "${map}")
  target_include_directories(amxtrain_gloo PRIVATE "${PROJECT_SOURCE_DIR}/src")
  # Last: a header that Gloo's packages forget.
  target_compile_options(amxtrain_gloo PRIVATE -idirafter "${PROJECT_SOURCE_DIR}/src/comm/gloo/missing")
  if(AMXT_GLOO_EVENTS_WITH_LOOP)
    target_compile_definitions(amxtrain_gloo PRIVATE AMXT_GLOO_EVENTS_WITH_LOOP=1)
  endif()
  target_link_libraries(amxtrain_gloo PRIVATE amxt_flags gloo Threads::Threads)
  target_link_options(amxtrain_gloo PRIVATE
    "LINKER:--version-script=${map}" LINKER:--no-undefined LINKER:--as-needed LINKER:-z,relro,-z,now)
  add_dependencies(amxt_comm amxtrain_gloo)
  add_dependencies(amxtrain amxtrain_gloo)
  file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  file(CREATE_LINK "../lib/libamxtrain-gloo.so" "${PROJECT_BINARY_DIR}/tests/libamxtrain-gloo.so" SYMBOLIC)
endfunction()

# The command, written on the public header alone.
function(amxt_add_command)
  file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tools/amxtrain/*.cpp")
  if(NOT sources)
    message(STATUS "No sources in tools/amxtrain: the command is not built")
    return()
  endif()
  find_package(CLI11 2 CONFIG REQUIRED)
  add_executable(amxtrain_command ${sources})
  set_target_properties(amxtrain_command PROPERTIES
    OUTPUT_NAME amxtrain
    BUILD_RPATH_USE_ORIGIN ON
    BUILD_WITH_INSTALL_RPATH ON
    INSTALL_RPATH "\$ORIGIN/../lib")
  target_include_directories(amxtrain_command PRIVATE "${PROJECT_SOURCE_DIR}/tools/amxtrain")
  target_link_libraries(amxtrain_command PRIVATE
    amxtrain amxt_flags amxt_fmt nlohmann_json::nlohmann_json CLI11::CLI11 Threads::Threads)
  # Nothing here is hot, and CLI11 in every file makes the command half of the build's time: 16 s a
  # file with -O2, 9 s with -O1 and its headers compiled once.
  target_compile_options(amxtrain_command PRIVATE $<$<CONFIG:Release>:-O1>)
  target_precompile_headers(amxtrain_command PRIVATE
    <CLI/CLI.hpp> <fmt/format.h> <nlohmann/json.hpp>)
  if(AMXT_CCACHE)
    set_target_properties(amxtrain_command PROPERTIES CXX_COMPILER_LAUNCHER
      "env;CCACHE_SLOPPINESS=pch_defines,time_macros;${AMXT_CCACHE}")
  endif()
endfunction()

# examples/c/<name>.c becomes build/.../examples/<name>.
function(amxt_add_examples)
  file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/examples/c/*.c")
  foreach(source IN LISTS sources)
    get_filename_component(name "${source}" NAME_WE)
    add_executable(example_${name} "${source}")
    set_target_properties(example_${name} PROPERTIES
      OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
    target_link_libraries(example_${name} PRIVATE amxtrain amxt_flags)
  endforeach()
endfunction()
