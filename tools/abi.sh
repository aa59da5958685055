#!/usr/bin/env bash
# The ABI's committed description, abi/libamxtrain.abi, made by abidw from the release build.
#   tools/abi.sh baseline   writes it          tools/abi.sh check   compares the build with it
# check exits 77 (skipped) without abigail-tools or before a baseline was committed.
set -euo pipefail
cd "$(dirname "$0")/.."

library=$(realpath "${2:-build/release/lib/libamxtrain.so}")
baseline=abi/libamxtrain.abi
describe() {
  abidw --headers-dir include --drop-private-types --exported-interfaces-only --no-elf-needed \
    --no-corpus-path --no-comp-dir-path --no-show-locs --type-id-style hash "$library" |
    sed "s|path='[^']*/src/|path='src/|"
}

case ${1:-} in
  baseline)
    mkdir -p abi
    describe >"$baseline.part"
    mv "$baseline.part" "$baseline"
    echo "abi: wrote $baseline"
    ;;
  check)
    if ! command -v abidw >/dev/null; then
      echo "skipped: no abigail-tools"
      exit 77
    elif [ ! -f "$baseline" ]; then
      echo "skipped: no $baseline yet (make abi-baseline)"
      exit 77
    fi
    current=$(mktemp)
    trap 'rm -f "$current"' EXIT
    describe >"$current"
    # Any change is named; an intended one is committed with make abi-baseline.
    if ! abidiff --no-show-locs "$baseline" "$current"; then
      echo "abi: differs from $baseline; see docs/abi-policy.md, then make abi-baseline" >&2
      exit 1
    fi
    echo "abi: as $baseline"
    ;;
  *)
    echo "usage: tools/abi.sh baseline|check [LIBRARY]" >&2
    exit 2
    ;;
esac
