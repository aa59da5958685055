#!/usr/bin/env bash
# The main job in small: a Llama in safetensors shards is loaded, trained by two processes, stopped by a signal, resumed, exported.
# The text is this project's own documentation, a token a byte. Everything is made under build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
amxtrain=$PWD/build/release/bin/amxtrain
work=$PWD/build/demo
rm -rf "$work"
mkdir -p "$work"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
  printf '$ amxtrain'
  printf ' %q' "$@" | sed "s#$work/##g"
  printf '\n'
  "$amxtrain" "$@"
}

say '1  What this machine has'
run info

say '2  A small Llama with random weights, in shards'
run init --config examples/demo/config.json --out "$work/llama" --shard-size 3MB --seed 1
run inspect "$work/llama" | tail -n 3

say '3  Its text: the documentation of this project'
run tokenize --out "$work/docs.safetensors" README.md docs/*.md src/*/README.md include/amxtrain.h

job=(launch --nproc-per-node 2 -- "$amxtrain" train --model "$work/llama" --data "$work/docs.safetensors" --output "$work/out"
     --steps 60 --seq-len 256 --micro-batch 1 --accumulate 4 --lr 1e-3 --schedule cosine --warmup-steps 5
     --save-steps 20 --log-steps 5 --metrics "$work/metrics.jsonl")

say '4  What training needs, said before it is taken'
run plan --model "$work/llama" --ranks 2 --seq-len 256

say '5  Two processes train; after the checkpoint of step 40 the job gets a SIGTERM'
"$amxtrain" "${job[@]}" &
pid=$!
until [ -e "$work/out/step-000040/manifest.json" ]; do
  kill -0 "$pid" 2>/dev/null || { wait "$pid"; exit 1; }
  sleep 0.05
done
kill -TERM "$pid"
wait "$pid" && stopped=0 || stopped=$?
echo "the job ended with exit code $stopped; its last checkpoint is $(readlink "$work/out/latest")"

say '6  It goes on from there, bit by bit as if nothing had happened'
run "${job[@]}" --resume latest
run verify "$work/out/latest"

say '7  What came out'
ls -1 "$work/out" "$work/out/final"
first=$(head -n 1 "$work/metrics.jsonl" | sed 's/.*"loss":\([0-9.]*\).*/\1/')
last=$(tail -n 1 "$work/metrics.jsonl" | sed 's/.*"loss":\([0-9.]*\).*/\1/')
speed=$(tail -n 1 "$work/metrics.jsonl" | sed 's/.*"tokens_per_second":\([0-9.]*\).*/\1/')
memory=$(tail -n 1 "$work/metrics.jsonl" | sed 's/.*"peak_pss_bytes_all_ranks":\([0-9]*\).*/\1/')
printf '\nloss %s -> %s in 60 steps, %.0f tokens/s, %d MiB in both processes together\n' "$first" "$last" "$speed" $((memory >> 20))
