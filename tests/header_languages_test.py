#!/usr/bin/env python3
"""include/amxtrain.h is C99 to C17 and C++11 to C++23 for gcc and clang, with every warning an error.

Usage: header_languages_test.py HEADER. Compiles a program that uses each INIT macro and each function.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))

import check_header  # noqa: E402

C = ["c99", "c11", "c17"]
CXX = ["c++11", "c++14", "c++17", "c++20", "c++23"]
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror"]


def main(header):
    header = pathlib.Path(header).resolve()
    program = check_header.uses(check_header.Header(header.read_text(encoding="utf-8")))
    alone = "#include <amxtrain.h>\nint main(void) { return 0; }\n"
    compiled = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for compilers, standards, suffix in ((["gcc", "clang-19"], C, ".c"), (["g++", "clang++-19"], CXX, ".cpp")):
            for compiler in compilers:
                if not shutil.which(compiler):
                    print(f"skipped: no {compiler}")
                    continue
                for standard in standards:
                    for name, text in (("alone", alone), ("uses", program)):
                        source = pathlib.Path(folder, name + suffix)
                        source.write_text(text, encoding="utf-8")
                        command = [compiler, f"-std={standard}", *WARNINGS, "-fsyntax-only", f"-I{header.parent}",
                                   str(source)]
                        if name == "uses":  # its array of functions of all types needs casts
                            command[-1:-1] = ["-Wno-cast-function-type"]
                        done = subprocess.run(command, capture_output=True, text=True, check=False)
                        compiled += 1
                        if done.returncode != 0:
                            failed += 1
                            print(f"FAILED: {compiler} -std={standard} ({name})\n{done.stderr[:2000]}")
    print(f"{compiled} compilations, {failed} failed")
    return 1 if failed or not compiled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
