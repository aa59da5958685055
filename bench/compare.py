#!/usr/bin/env python3
"""Trains the same model on the same tokens with amxtrain and with its peers, in turn, and writes JSON and a Markdown table.

python bench/compare.py --python VENV/bin/python --model DIR --out DIR

VENV has bench/peers/requirements.txt; the model is a Hugging Face directory (amxtrain init --preset 300m --out DIR).
Every step of a program trains on all rows of its token file, so that the losses agree whatever the order of rows.

Each round runs every program once, A B A B. Time is taken from outside: between the moments at which a program's line for a
step appears; the first steps (--skip) are left out. Memory has one more run of each program, since reading the page tables of
a large process slows it down: the proportional set sizes (PSS) of all its processes, summed at 10 Hz.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time

import numpy

from machine import machine

HERE = pathlib.Path(__file__).resolve().parent
ACCUMULATE = 4
RANKS = {"amxtrain": 1, "torch": 1, "amxtrain-2": 2, "deepspeed": 2}
PAIRS = [("amxtrain", "torch"), ("amxtrain-2", "deepspeed")]


def command(name, a, tokens, metrics, scratch):
    """The program's command line. Ours writes its lines to `metrics`, a peer to standard output."""
    if name == "torch":
        return [a.python, HERE / "peers/train_torch.py", "--model", a.model, "--tokens", tokens, "--steps", a.steps,
                "--mode", a.torch_mode]
    if name == "deepspeed":
        return [a.python, "-m", "torch.distributed.run", "--nproc_per_node=2", HERE / "peers/train_deepspeed.py",
                "--model", a.model, "--tokens", tokens, "--steps", a.steps]
    train = [a.amxtrain, "train", "--model", a.model, "--data", tokens, "--output", scratch / "output", "--no-save",
             "--steps", a.steps, "--seq-len", a.sequence, "--micro-batch", 1, "--accumulate", ACCUMULATE, "--lr", 2e-5,
             "--schedule", "constant", "--weight-decay", 0.01, "--clip", 1.0, "--metrics", metrics]
    return train if name == "amxtrain" else [a.amxtrain, "launch", "--nproc-per-node", 2, "--", *train]


def process_table():
    """(pid, start time) -> parent pid. A pid alone may come back as another process."""
    table = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = pathlib.Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            table[int(entry.name), fields[19]] = int(fields[1])
    return table


def pss_bytes(pid):
    try:
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0


class ProcessTree:
    """All processes that come from one, also those whose parents have ended."""

    def __init__(self, root):
        self.root, self.known = root, set()

    def members(self):
        table = process_table()
        self.known = {p for p in self.known if p in table} | {p for p in table if p[0] == self.root}
        while True:
            pids = {pid for pid, _ in self.known}
            more = {p for p, parent in table.items() if parent in pids} - self.known
            if not more:
                return sorted(pids)
            self.known |= more

    def kill(self):
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


class MemorySampler(threading.Thread):
    """Keeps the largest sum of PSS over a process tree, with its parts."""

    def __init__(self, tree, hertz):
        super().__init__(daemon=True)
        self.tree, self.period, self.done = tree, 1 / hertz, threading.Event()
        self.samples, self.peak, self.parts = 0, 0, {}

    def run(self):
        following = time.monotonic()
        while not self.done.is_set():
            parts = {pid: pss_bytes(pid) for pid in self.tree.members()}
            self.samples += 1
            if sum(parts.values()) > self.peak:
                self.peak, self.parts = sum(parts.values()), parts
            following = max(following + self.period, time.monotonic())
            self.done.wait(following - time.monotonic())


def step_lines(path):
    """Whole JSON lines; a program may print others beside them."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line for line in text.split("\n")[:-1] if line.startswith('{"')]


def run(name, a, measure_memory):
    """Runs one program to its end and gives what was seen of it."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="compare-", dir=a.out))
    tokens = scratch / "tokens.npy"
    rows = RANKS[name] * ACCUMULATE
    numpy.save(tokens, numpy.random.default_rng(1).integers(0, a.vocabulary, (rows, a.sequence), dtype=numpy.int32))
    ours = name.startswith("amxtrain")
    out, errors = scratch / "out", scratch / "err"
    lines = scratch / "metrics.jsonl" if ours else out
    argv = [str(x) for x in command(name, a, tokens, lines, scratch)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // RANKS[name])), "HF_HUB_OFFLINE": "1"}
    if ours:
        environment.pop("OMP_NUM_THREADS")  # it divides the cores by itself
    start, seen = time.monotonic(), []
    with open(out, "wb") as o, open(errors, "wb") as e:
        process = subprocess.Popen(argv, stdout=o, stderr=e, stdin=subprocess.DEVNULL, env=environment)
    tree = ProcessTree(process.pid)
    sampler = MemorySampler(tree, a.hertz)
    if measure_memory:
        sampler.start()
    while process.poll() is None and time.monotonic() - start < a.timeout:
        count = len(step_lines(lines))
        seen += [time.monotonic() - start] * (count - len(seen))
        time.sleep(0.02)
    code = process.poll()
    if code is None:
        tree.kill()
        process.wait()
    sampler.done.set()
    steps = [json.loads(line) for line in step_lines(lines)]
    if code != 0 or len(steps) != a.steps:
        ending = "ran into the time limit" if code is None else f"ended with {code}"
        raise SystemExit(f"{name} {ending} after {len(steps)} of {a.steps} steps: {' '.join(argv)}\n"
                         + errors.read_text(errors="replace")[-2000:])
    seen += [time.monotonic() - start] * (len(steps) - len(seen))
    result = {"program": name, "command": argv, "seen_at_seconds": seen, "steps": steps}
    if measure_memory:
        sampler.join()
        result |= {"peak_pss_bytes": sampler.peak, "pss_samples": sampler.samples, "peak_pss_bytes_by_pid": sampler.parts}
        if RANKS[name] > 1:
            result["peak_pss_bytes_of_launcher"] = sampler.parts.get(process.pid, 0)
    shutil.rmtree(scratch)
    return result


def summary(name, rounds, memory, a):
    timed = [r for r in rounds if r["program"] == name]
    kept = [float(x) for r in timed for x in numpy.diff(r["seen_at_seconds"])[a.skip - 1:]]
    tokens = timed[0]["steps"][0]["tokens"]
    return {"seconds_per_step": statistics.median(kept), "slowest": max(kept), "fastest": min(kept), "steps_timed": len(kept),
            "tokens_per_step": tokens, "tokens_per_second": tokens / statistics.median(kept),
            "own_tokens_per_second": statistics.median(s["tokens_per_second"] for r in timed for s in r["steps"][a.skip:]),
            "seconds_to_first_step": statistics.median(r["seen_at_seconds"][0] for r in timed),
            "losses": [s["loss"] for s in timed[0]["steps"]], "peak_pss_bytes": memory[name]["peak_pss_bytes"],
            "peak_pss_bytes_of_launcher": memory[name].get("peak_pss_bytes_of_launcher", 0)}


def table(summaries, names):
    out = ["| program | ranks | tokens/s | s/step (fastest-slowest) | start to first step | peak PSS, all ranks | loss, first and last |",
           "|---|---|---|---|---|---|---|"]
    for n in names:
        s = summaries[n]
        out.append(f"| {n} | {RANKS[n]} | {s['tokens_per_second']:.1f} | {s['seconds_per_step']:.2f} "
                   f"({s['fastest']:.2f}-{s['slowest']:.2f}) | {s['seconds_to_first_step']:.1f} s "
                   f"| {(s['peak_pss_bytes'] - s['peak_pss_bytes_of_launcher']) / 2**30:.2f} GiB "
                   f"| {s['losses'][0]:.4f}, {s['losses'][-1]:.4f} |")
    pairs = [p for p in PAIRS if p[0] in names and p[1] in names]
    if pairs:
        out += ["", "| ratio | speed | peak PSS |", "|---|---|---|"]
    for ours, peer in pairs:
        x, y = summaries[ours], summaries[peer]
        memory = [s["peak_pss_bytes"] - s["peak_pss_bytes_of_launcher"] for s in (x, y)]
        out.append(f"| {ours} to {peer} | {x['tokens_per_second'] / y['tokens_per_second']:.2f} x | {memory[0] / memory[1]:.2f} x |")
    return out


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="where compare.json and compare.md go")
    parser.add_argument("--python", default="python3", help="of the peers' environment")
    parser.add_argument("--amxtrain", default=HERE.parent / "build/release/bin/amxtrain", type=pathlib.Path)
    parser.add_argument("--programs", nargs="+", choices=RANKS, default=list(RANKS))
    parser.add_argument("--torch-mode", choices=["autocast", "autocast-compile", "bf16"], default="autocast")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of each run")
    parser.add_argument("--skip", type=int, default=1, help="steps of each run that are not timed")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--hertz", type=float, default=10, help="memory samples per second")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    a = parser.parse_args()
    if not 1 <= a.skip < a.steps:
        parser.error("--skip: at least 1, and fewer than --steps")
    a.vocabulary = json.loads((a.model / "config.json").read_text())["vocab_size"]
    a.out.mkdir(parents=True, exist_ok=True)
    return a


def main():
    a = arguments()
    rounds, memory = [], {}
    for number in range(a.rounds):
        for name in a.programs:
            rounds.append(run(name, a, measure_memory=False))
            print(f"round {number + 1} of {a.rounds}: {name}", [round(s["tokens_per_second"], 1) for s in rounds[-1]["steps"]], flush=True)
    for name in a.programs:
        memory[name] = run(name, a, measure_memory=True)
        print(f"memory: {name} {memory[name]['peak_pss_bytes'] / 2**30:.2f} GiB in {memory[name]['pss_samples']} samples", flush=True)
    summaries = {n: summary(n, rounds, memory, a) for n in a.programs}
    where = machine()
    (a.out / "compare.json").write_text(json.dumps(
        {"machine": where, "summary": summaries, "rounds": rounds, "memory": memory}, indent=1, default=str) + "\n")
    head = [f"{where['cpu']}, {where['cores']} cores, {where['date']}; {a.rounds} rounds in turn, medians of "
            f"{a.steps - a.skip} steps each; sequences of {a.sequence}, {ACCUMULATE} micro-batches of one to a step of a rank.", ""]
    text = "\n".join(head + table(summaries, a.programs)) + "\n"
    (a.out / "compare.md").write_text(text)
    print("\n" + text, end="")


if __name__ == "__main__":
    main()
