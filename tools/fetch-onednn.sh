#!/usr/bin/env bash
# Fetches oneDNN into build/deps/onednn: headers, and the library under a name of its own, so that a
# host's oneDNN is never taken for it. Does nothing when it is there, or when the system's is new enough.
set -euo pipefail
cd "$(dirname "$0")/.."

version=3.13-1.5.14
sha256=9c9a46215ec11c7ceb442714083615c74104f4ad7181ff910bf5fa95999070f4
soname=libamxtrain-dnnl.so.3
target=build/deps/onednn
file=dnnl-$version-linux-x86_64.jar

[ "$(cat "$target/complete" 2>/dev/null)" = "$sha256" ] && exit 0

for config in /usr/lib/*/cmake/dnnl/dnnl-config-version.cmake /usr/lib/cmake/dnnl/dnnl-config-version.cmake; do
  [ -f "$config" ] || continue
  found=$(sed -n 's/^set(PACKAGE_VERSION "\([0-9.]*\)").*/\1/p' "$config" | head -n 1)
  if [ -n "$found" ] && [ "$(printf '%s\n3.6\n' "$found" | sort -V | head -n 1)" = 3.6 ]; then
    exit 0
  fi
done

echo "fetching oneDNN ($file, 27 MiB) by Maven"
mkdir -p build/deps
work=$(mktemp -d build/deps/onednn.XXXXXX)
trap 'rm -rf "$work"' EXIT
for attempt in 1 2 3; do
  if mvn -q -B -Dstyle.color=never dependency:copy -Dmdep.useBaseVersion=true \
      "-Dartifact=org.bytedeco:dnnl:$version:jar:linux-x86_64" "-DoutputDirectory=$work" </dev/null; then
    break
  elif [ "$attempt" = 3 ]; then
    echo "fetch-onednn: Maven could not fetch $file" >&2
    exit 1
  fi
done
if ! echo "$sha256  $work/$file" | sha256sum --check --quiet; then
  echo "fetch-onednn: the SHA-256 of $file is not the expected one" >&2
  exit 1
fi

(cd "$work" && cmake -E tar xf "$file" org/bytedeco/dnnl/linux-x86_64)
unpacked=$work/org/bytedeco/dnnl/linux-x86_64
mkdir -p "$work/new/lib"
mv "$unpacked/include" "$work/new/include"
mv "$unpacked/libdnnl.so.3" "$work/new/lib/$soname"
# The OpenMP runtime is the system's; the one in the archive is left out with the search path to it.
patchelf --set-soname "$soname" --remove-rpath "$work/new/lib/$soname"
chmod 755 "$work/new/lib/$soname"
echo "$sha256" >"$work/new/complete"
rm -rf "$target"
mv "$work/new" "$target"
