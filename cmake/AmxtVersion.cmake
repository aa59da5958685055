# base/version.h and version.cpp, made in the build tree. The commit is in a source file of its own, so
# that a commit recompiles that file and nothing else.

set(AMXT_GENERATED_DIR "${PROJECT_BINARY_DIR}/generated")
string(TOLOWER "${CMAKE_BUILD_TYPE}" AMXT_BUILD_TYPE_LOWER)
configure_file("${PROJECT_SOURCE_DIR}/cmake/version.h.in" "${AMXT_GENERATED_DIR}/base/version.h" @ONLY)

set(AMXT_COMMIT_SOURCE "${AMXT_GENERATED_DIR}/version.cpp")
set(AMXT_COMMIT_COMMAND
  "${CMAKE_COMMAND}" "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}" "-DOUTPUT=${AMXT_COMMIT_SOURCE}"
  -P "${PROJECT_SOURCE_DIR}/cmake/git_commit.cmake")
execute_process(COMMAND ${AMXT_COMMIT_COMMAND} COMMAND_ERROR_IS_FATAL ANY)
add_custom_target(amxt_git_commit COMMAND ${AMXT_COMMIT_COMMAND} BYPRODUCTS "${AMXT_COMMIT_SOURCE}"
  COMMENT "" VERBATIM)

# The header is written by hand; its numbers must be those of project().
if(EXISTS "${PROJECT_SOURCE_DIR}/include/amxtrain.h")
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${PROJECT_SOURCE_DIR}/include/amxtrain.h" line
      REGEX "^#define AMXT_VERSION_${part}[ ]+[0-9]+")
    if(NOT line MATCHES "AMXT_VERSION_${part}[ ]+${PROJECT_VERSION_${part}}$")
      message(FATAL_ERROR "include/amxtrain.h says '${line}', the version is ${PROJECT_VERSION}")
    endif()
  endforeach()
  set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY
    CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/include/amxtrain.h")
endif()
