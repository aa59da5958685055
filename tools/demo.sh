#!/usr/bin/env bash
# The main job in small: a Llama in safetensors shards is loaded, trained by two processes, stopped by a signal, resumed, exported.
# The text is this project's own documentation, a token a byte. Everything is made in build/demo.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PATH=$root/build/release/bin:$PATH
rm -rf "$root/build/demo"
mkdir -p "$root/build/demo/text"
cd "$root/build/demo"
cp "$root"/README.md "$root"/docs/*.md "$root"/include/amxtrain.h text/
cp "$root"/examples/demo/config.json config.json

say() { printf '\n== %s\n' "$*"; }
run() {
  echo "\$ $*"
  "$@"
}
train=(amxtrain launch --nproc-per-node 2 -- amxtrain train --model llama --data text.safetensors --output out
       --steps 60 --seq-len 256 --accumulate 4 --lr 1e-3 --schedule cosine --warmup-steps 5
       --save-steps 20 --log-steps 5 --metrics metrics.jsonl)

say 'What this machine has'
run amxtrain info

say 'A small Llama with random weights, in shards'
run amxtrain init --config config.json --out llama --shard-size 3MB --seed 1

say 'Its text: the documentation of this project'
run amxtrain tokenize --out text.safetensors text/*

say 'What training needs, said before it is taken'
run amxtrain plan --model llama --ranks 2 --seq-len 256

say 'Two processes train; after the checkpoint of step 40 the job gets a SIGTERM'
echo "\$ ${train[*]}"
"${train[@]}" &
pid=$!
until [ -e out/step-000040/manifest.json ]; do
  kill -0 "$pid" 2>/dev/null || { wait "$pid"; exit 1; }
  sleep 0.05
done
kill -TERM "$pid" 2>/dev/null || true
wait "$pid" && stopped=0 || stopped=$?
echo "the job ended with exit code $stopped; its last checkpoint is $(readlink out/latest)"

say 'It goes on from there'
run "${train[@]}" --resume latest
run amxtrain verify out/latest

say 'What came out'
ls -d out/* out/final/*
number() { sed -n "$1p" metrics.jsonl | sed "s/.*\"$2\":\([0-9.]*\).*/\1/"; }
LC_ALL=C printf '\nloss %.3f -> %.3f in 60 steps, %.0f tokens/s, %d MiB in both processes together\n' \
  "$(number 1 loss)" "$(number '$' loss)" "$(number '$' tokens_per_second)" \
  $(($(number '$' peak_pss_bytes_all_ranks) >> 20))
