# Language levels and flags of everything that is compiled here.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  message(FATAL_ERROR "amxtrain needs an x86-64 target, this is ${CMAKE_SYSTEM_PROCESSOR}")
endif()

find_program(AMXT_CCACHE ccache)
if(AMXT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER "${AMXT_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${AMXT_CCACHE}")
endif()

# -g1 keeps file and line in stack traces and valgrind's reports for little space.
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")

add_library(amxt_flags INTERFACE)
target_compile_definitions(amxt_flags INTERFACE _GNU_SOURCE)
target_compile_options(amxt_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow
  $<$<BOOL:${AMXT_WERROR}>:-Werror>
  # Clang sees what libstdc++ 12's stable_sort calls as deprecated; its own headers do not say so to GCC.
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-deprecated-declarations>
  # The baseline of the whole library; wider instructions only in the files that amxt_add_ladder() names.
  -march=x86-64-v3 -mtune=sapphirerapids
  -fstack-protector-strong
  # A product and a sum become one instruction only where the code says so: else the bits of a
  # result would depend on inlining and on which part of a loop was vectorised.
  -ffp-contract=off
  -fno-math-errno)

if(AMXT_SANITIZE)
  # For all targets, so that the tests and the library agree.
  add_compile_options("-fsanitize=${AMXT_SANITIZE}" -fno-omit-frame-pointer)
  add_link_options("-fsanitize=${AMXT_SANITIZE}")
  if(AMXT_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=all)
  endif()
  add_compile_definitions(AMXT_SANITIZED=1)
endif()
if(AMXT_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL "Debug")
  add_compile_definitions(_GLIBCXX_ASSERTIONS) # spans and vectors check their bounds
endif()

# amxt_isa_flags(<out> <file>): the flags that a file's suffix asks for.
function(amxt_isa_flags out file)
  # GCC 12 warns of its own _mm512_undefined_*() (PR 105593).
  set(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd
             $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>)
  if(file MATCHES "_avx512\\.cpp$")
    set(flags ${avx512})
  elseif(file MATCHES "_avx512bf16\\.cpp$")
    set(flags ${avx512} -mavx512bf16)
  elseif(file MATCHES "_amx\\.cpp$")
    set(flags ${avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
  else()
    set(flags "") # *_avx2.cpp is the baseline itself
  endif()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()
