#!/usr/bin/env python3
"""No function compiled for wider instructions can be taken for a baseline one.

Usage: wide_symbols_test.py BUILD_FOLDER
A file with a suffix such as _avx512.cpp is compiled with wider flags. If it emits a weak function (an
inline function or a template instance with external linkage), the linker may keep that copy for the
whole library, and an older CPU ends in SIGILL far from any kernel.
"""

import pathlib
import re
import subprocess
import sys

WIDE = re.compile(r"_(avx512|avx512bf16|amx)\.cpp\.o$")


def main(folder):
    problems = []
    objects = sorted(p for p in pathlib.Path(folder, "CMakeFiles").rglob("*.o") if WIDE.search(p.name))
    for path in objects:
        out = subprocess.run(["nm", "--defined-only", "--demangle", str(path)], check=True, capture_output=True,
                             text=True).stdout
        for line in out.splitlines():
            _, kind, name = line.split(maxsplit=2)
            if kind in "Wu":
                problems.append(f"{path.name}: shares {name}")
    for problem in problems:
        print(problem)
    print(f"{len(objects)} files with wider instructions, {len(problems)} shared functions")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
