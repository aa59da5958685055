#!/usr/bin/env bash
# Builds and runs one consumer against an installed copy, as a stranger would: only the prefix is known.
#   consumer_test.sh install BUILD PREFIX         installs the build into an empty PREFIX
#   consumer_test.sh NAME PREFIX WORK_FOLDER      NAME: pkgconfig, cmake, dlopen, ctypes, cgo
# Exits 77 (skipped) with one line when a language's tools are missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
name=$1

if [ "$name" = install ]; then
  rm -rf "$3"
  cmake --install "$2" --prefix "$3" >/dev/null
  for file in include/amxtrain.h lib/libamxtrain.so lib/pkgconfig/amxtrain.pc \
      lib/cmake/amxtrain/amxtrain-config.cmake bin/amxtrain; do
    [ -e "$3/$file" ] || { echo "not installed: $file" >&2; exit 1; }
  done
  # A copy elsewhere works: nothing in it may name the build tree.
  if grep -rlF --include=*.pc --include=*.cmake "$2" "$3"; then
    echo "these files name the build tree" >&2
    exit 1
  fi
  "$3/bin/amxtrain" --version
  exit 0
fi

prefix=$2
work=$3
rm -rf "$work"
mkdir -p "$work"
cp -r "$here/." "$work/src"
cd "$work/src/$name"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
export LD_LIBRARY_PATH=$prefix/lib
export TMPDIR=$work

case $name in
  pkgconfig)
    make --no-print-directory CC="${CC:-cc}"
    ./train_step "$work/model"
    ;;
  cmake)
    cmake -S . -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" >"$work/configure.log" 2>&1 ||
      { cat "$work/configure.log"; exit 1; }
    cmake --build "$work/build"
    env -u LD_LIBRARY_PATH "$work/build/train_step" "$work/model"
    ;;
  dlopen)
    "${CC:-cc}" -std=c99 -Wall -Wextra -Werror -I"$prefix/include" -o run_time run_time.c -ldl
    ./run_time "$prefix/lib/libamxtrain.so.0"
    ;;
  ctypes)
    python3 train_step.py "$prefix/lib/libamxtrain.so.0" "$work/model"
    ;;
  cgo)
    go=$(command -v go || true)
    if [ -z "$go" ] && [ -x /usr/local/go/bin/go ]; then
      go=/usr/local/go/bin/go
    fi
    if [ -z "$go" ]; then
      echo "skipped: no go"
      exit 77
    fi
    export GOFLAGS=-mod=mod GOTOOLCHAIN=local GOCACHE=${GOCACHE:-$work/../go-cache} CGO_ENABLED=1
    "$go" vet .
    "$go" build -o train_step .
    ./train_step "$work/model"
    ;;
  *)
    echo "unknown consumer '$name'" >&2
    exit 2
    ;;
esac
