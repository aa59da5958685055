#!/usr/bin/env bash
# make check: installs what is missing, builds, runs every test and says how long each stage took.
#   tools/check.sh [STAGE...]     only these stages, in the order below
set -uo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8
exec </dev/null

all_stages=(dependencies build format tests sanitized_build sanitized_tests fuzz_build fuzz_tests valgrind)
stages=("$@")
[ $# -gt 0 ] || stages=("${all_stages[@]}")
jobs=${JOBS:-$(nproc)}
results=build/check
rm -rf "$results"
mkdir -p "$results"

# Runs ctest so that its report can be counted: run_ctest PRESET ARGUMENT... A test that fails is tried once
# more and named at the end, whatever comes of it: on a machine that others use, too, a process may be kept from its turn for seconds.
run_ctest() {
  local preset=$1
  shift
  ctest --preset "$preset" --parallel "$jobs" --repeat until-pass:2 --test-output-size-passed 1048576 \
    --output-junit "$PWD/$results/$preset.xml" "$@" 2>&1 | tee "$results/$preset.ctest.log"
  return "${PIPESTATUS[0]}"
}

dependencies() { tools/install-dependencies.sh check && tools/fetch-onednn.sh; }

build() { cmake --preset release && cmake --build --preset release --parallel "$jobs"; }

format() { tools/format.sh --check; }

tests() { run_ctest release; }

sanitized_build() { cmake --preset asan && cmake --build --preset asan --parallel "$jobs"; }

sanitized_tests() { run_ctest asan --label-regex '^(unit|capi|ranks|sanitizer)$'; }

fuzz_build() { cmake --preset fuzz && cmake --build --preset fuzz --parallel "$jobs"; }

fuzz_tests() { run_ctest fuzz --no-tests=ignore; }

# valgrind shows the program a CPU with AVX2 and nothing wider: a function that was compiled for more
# and is reached all the same ends in SIGILL.
valgrind() {
  local program=build/release/tests/unit_kernels filter
  if [ ! -x "$program" ]; then
    echo "skipped: no $program"
    return 0
  fi
  filter=$(cat tests/valgrind.filter)
  command valgrind --quiet --error-exitcode=9 --leak-check=no --suppressions=tests/valgrind.supp \
    "$program" --gtest_filter="$filter" --gtest_brief=1 --gtest_output="xml:$results/valgrind.xml" 2>&1 |
    tee "$results/valgrind.log"
  return "${PIPESTATUS[0]}"
}

declare -A seconds outcome
failed=0
begin=$SECONDS
for stage in "${stages[@]}"; do
  case $stage in # a stage whose build is missing would only repeat the failure
    tests | valgrind) needs=build ;;
    sanitized_tests) needs=sanitized_build ;;
    fuzz_tests) needs=fuzz_build ;;
    *) needs= ;;
  esac
  if [ -n "$needs" ] && [ "${outcome[$needs]:-ok}" = FAILED ]; then
    seconds[$stage]=0
    outcome[$stage]="not run: $needs failed"
    continue
  fi
  printf '\n==== %s\n' "$stage"
  start=$SECONDS
  if "$stage"; then
    outcome[$stage]=ok
  else
    outcome[$stage]=FAILED
    failed=1
  fi
  seconds[$stage]=$((SECONDS - start))
  printf '==== %s: %s, %d s\n' "$stage" "${outcome[$stage]}" "${seconds[$stage]}"
  if [ "$stage" = dependencies ] && [ "$failed" = 1 ]; then
    break
  fi
done

printf '\n==== time of each stage, %d s in all\n' $((SECONDS - begin))
for stage in "${stages[@]}"; do
  printf '%-16s %5d s  %s\n' "$stage" "${seconds[$stage]:-0}" "${outcome[$stage]:-not run}"
done
for log in "$results"/*.ctest.log; do
  [ -f "$log" ] || continue
  printf '\n==== ctest, %s\n' "$(basename "$log" .ctest.log)"
  sed -n '/% tests passed/,$p' "$log"
  sed -nE 's/^.*Test +#[0-9]+: ([^ ]+).*\*\*\*(Failed|Timeout|Exception).*/failed at a try: \1/p' "$log" | sort -u
done
echo
shopt -s nullglob
reports=("$results"/*.xml)
if [ ${#reports[@]} -gt 0 ]; then
  python3 tools/count_tests.py "${reports[@]}" || failed=1
elif [ $# = 0 ]; then
  echo "0 passed, 0 failed, 0 skipped"
  failed=1
fi
exit "$failed"
