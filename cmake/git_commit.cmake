# cmake -DSOURCE_DIR=... -DOUTPUT=... -P git_commit.cmake: writes the commit, touching the file only on change.
set(commit "unknown")
if(EXISTS "${SOURCE_DIR}/.git")
  set(ENV{GIT_OPTIONAL_LOCKS} 0)
  execute_process(
    COMMAND git -c safe.directory=* -C "${SOURCE_DIR}" describe --always --dirty --abbrev=12 "--exclude=*"
    OUTPUT_VARIABLE out ERROR_QUIET RESULT_VARIABLE rc OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(rc EQUAL 0)
    set(commit "${out}")
  endif()
endif()
file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT [[
#include "base/version.h"

namespace amxt {
extern const char kGitCommit[] = "@commit@";
}  // namespace amxt
]])
