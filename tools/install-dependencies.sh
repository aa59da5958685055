#!/usr/bin/env bash
# Installs the Debian packages that the build and the tests need, and only those that are missing.
#   tools/install-dependencies.sh [build|check]     build: what `make build` needs; check (default): tests too
set -euo pipefail

required_build=(
  g++ make cmake ninja-build ccache pkg-config git ca-certificates patchelf
  nlohmann-json3-dev libfmt-dev libcli11-dev
  libhwloc-dev liburing-dev libxxhash-dev libssl-dev libgloo-dev libgomp1
  libgtest-dev libgmock-dev libcmocka-dev python3)
required_check=(clang-19 libclang-rt-19-dev clang-format-19 valgrind abigail-tools util-linux)

packages=("${required_build[@]}")
[ "${1:-check}" = build ] || packages+=("${required_check[@]}")

installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

if ! command -v dpkg-query >/dev/null; then
  echo "install-dependencies: not a Debian system; needed: ${packages[*]} and oneDNN >= 3.6" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done

as_root=()
if [ "$(id -u)" != 0 ]; then
  as_root=(sudo)
fi
apt_get() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" </dev/null
}

updated=
install() {
  if [ ${#as_root[@]} -gt 0 ] && ! command -v sudo >/dev/null; then
    echo "install-dependencies: not root and no sudo; please install: $*" >&2
    exit 1
  fi
  echo "installing: $*"
  if [ -z "$updated" ]; then
    apt_get update
    updated=yes
  fi
  apt_get install --no-install-recommends "$@" >/dev/null
}

if [ ${#missing[@]} -gt 0 ]; then
  install "${missing[@]}"
fi

# oneDNN: Debian 13 has a new enough one; before that it comes as a Maven artifact.
[ -f "$(dirname "$0")/../build/deps/onednn/complete" ] && exit 0
installed libdnnl-dev && dpkg --compare-versions "$(dpkg-query -W -f '${Version}' libdnnl-dev)" ge 3.6 && exit 0
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p'; }
version=$(candidate libdnnl-dev)
if [ -n "$version" ] && [ "$version" != "(none)" ] && dpkg --compare-versions "$version" ge 3.6; then
  install libdnnl-dev
elif ! command -v mvn >/dev/null; then
  install maven
fi
