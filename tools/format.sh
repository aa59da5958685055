#!/usr/bin/env bash
# Formats every C and C++ file with clang-format-19; with --check it changes nothing, names the files
# that differ and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

clang_format=$(command -v clang-format-19 || true)
if [ -z "$clang_format" ]; then
  echo "format: clang-format-19 is missing" >&2
  exit 1
fi
mapfile -d '' existing < <(find . -path ./build -prune -o -path ./.git -prune -o \
  -type f \( -name '*.h' -o -name '*.c' -o -name '*.cpp' \) -print0)
if [ "${1:-}" != --check ]; then
  "$clang_format" -i "${existing[@]}"
  exit 0
fi

mapfile -t different < <(printf '%s\0' "${existing[@]}" |
  xargs -0 -n 40 -P "$(nproc)" "$clang_format" --dry-run 2>&1 |
  sed -n 's/^\([^:]*\):[0-9]*:[0-9]*: warning: code should be clang-formatted.*/\1/p' | sort -u)
if [ ${#different[@]} -gt 0 ]; then
  printf 'not formatted: %s\n' "${different[@]}" >&2
  echo "format: ${#different[@]} of ${#existing[@]} files differ; make format" >&2
  exit 1
fi
echo "format: ${#existing[@]} files"
