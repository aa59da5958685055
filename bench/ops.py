#!/usr/bin/env python3
"""The operations of a step by `amxtrain bench` and by its peers (peers/ops.py), in turn, several rounds; JSON and a Markdown table.

python bench/ops.py --python VENV/bin/python --out DIR [--rounds 3] [--repeat 5] [--threads 2] [--only layer attention ...]

A round runs each program once on each shape. What counts is the median over rounds of the programs' own medians, and the ratio of two
medians; `ratio to peak` is to the limit that the benchmark measures in the same run. A peer that does not run is named with its last words.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from machine import machine

HERE = pathlib.Path(__file__).resolve().parent
LAYER, ATTENTION = "4096,14336,32,8,128", "32,8,128"
# Benchmark, shape, forms that count, peers.
CASES = [("layer", f"512,{LAYER}", ["forward and backward"], ["layer"]),
         ("layer", f"2048,{LAYER}", ["forward and backward"], ["layer"]),
         ("attention", f"512,{ATTENTION}", ["forward", "backward"], ["attention"]),
         ("attention", f"2048,{ATTENTION}", ["forward", "backward"], ["attention"]),
         ("head", "512,128256,4096", ["forward and backward"], ["head"]),
         ("optimizer", str(128 << 20), ["norm, clip, AdamW"], ["optimizer", "optimizer-deepspeed"])]


def last_json(command):
    """The JSON object that a program ends with (libraries talk before it), or the last line of why there is none."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    start = max(done.stdout.rfind("\n{"), 0 if done.stdout.startswith("{") else -1)
    if done.returncode != 0 or start < 0:
        words = (done.stderr.strip() or "no output").splitlines()[-1]
        return None, f"{command[0]} ended with {done.returncode}: {words}"
    return json.loads(done.stdout[start:]), ""


def ours(name, shape, a):
    shapes = ["--shape", shape] if shape else []
    result, why = last_json([a.amxtrain, "bench", name, "--json", "--threads", a.threads, "--repeat", a.repeat, *shapes])
    if result is None:
        sys.exit(why)
    return result


class Measured:
    """What the rounds gave of one case."""

    def __init__(self, name, shape, forms, peers):
        self.name, self.shape, self.forms = name, shape, forms
        self.own, self.peers, self.failures = [], {peer: [] for peer in peers}, {}

    def round(self, a):
        self.own.append(ours(self.name, self.shape, a))
        for peer in [p for p in self.peers if p not in self.failures]:
            result, why = last_json([a.python, HERE / "peers/ops.py", peer, self.shape, "--threads", a.threads,
                                     "--repeat", a.repeat])
            if result is None:
                self.failures[peer] = why
            else:
                self.peers[peer].append(result)

    def median(self, results, form, key):
        return statistics.median(row[key] for result in results for row in result["rows"] if row["form"] == form)

    def lines(self):
        for form in self.forms:
            line = {"operation": self.name, "form": form, "shape": self.shape,
                    "seconds": self.median(self.own, form, "seconds"),
                    "ratio_to_peak": self.median(self.own, form, "ratio_to_peak"),
                    "cpu_ratio_to_peak": self.median(self.own, form, "cpu_ratio_to_peak"),
                    "peak": self.own[0]["peak"]["name"], "peers": {}}
            for peer, results in self.peers.items():
                if peer in self.failures:
                    line["peers"][peer] = {"failed": self.failures[peer]}
                    continue
                seconds = self.median(results, form, "seconds")
                line["peers"][peer] = {"seconds": seconds, "times_as_fast": seconds / line["seconds"]}
            for row in self.own[0]["rows"]:
                if row["form"] == form and "extra_to_logits" in row:
                    line["extra_to_logits"] = row["extra_to_logits"]
            yield line


def gemm_lines(results):
    """Own products beside the library's other ones: both are in one program, and take turns there."""
    own = results[0]["means"][0]["implementation"]
    for mean in results[0]["means"]:
        which = [m for r in results for m in r["means"] if m["implementation"] == mean["implementation"]]
        yield {"operation": "gemm", "form": f"geometric mean, {mean['implementation']}", "shape": "default",
               "tflops": statistics.median(m["tflops"] for m in which), "peak": results[0]["peak"]["name"],
               "ratio_to_peak": statistics.median(m["ratio_to_peak"] for m in which),
               "cpu_ratio_to_peak": statistics.median(m["cpu_ratio_to_peak"] for m in which), "peers": {},
               **({} if mean["implementation"] == own else {"own_times_as_fast": statistics.median(
                   r["means"][0]["tflops"] / m["tflops"] for r in results for m in r["means"]
                   if m["implementation"] == mean["implementation"])})}


def table(lines):
    out = ["| operation | shape | ms | ratio to peak | beside |", "|---|---|---|---|---|"]
    for line in lines:
        beside = [peer["failed"] if "failed" in peer else f"{peer['times_as_fast']:.2f} x {name} ({peer['seconds'] * 1e3:.1f} ms)"
                  for name, peer in line["peers"].items()]
        if "own_times_as_fast" in line:
            beside.append(f"own {line['own_times_as_fast']:.2f} x")
        if "extra_to_logits" in line:
            beside.append(f"extra memory {line['extra_to_logits']:.2f} of the logits in fp32")
        time = f"{line['seconds'] * 1e3:.1f}" if "seconds" in line else f"{line['tflops']:.3f} TFLOP/s"
        out.append(f"| {line['operation']}, {line['form']} | {line['shape']} | {time} | {line['ratio_to_peak'] * 100:.1f}% of {line['peak']} "
                   f"(processor time {line['cpu_ratio_to_peak'] * 100:.1f}%) | {'; '.join(beside)} |")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="where ops.json and ops.md go")
    parser.add_argument("--python", default=sys.executable, help="of the peers' environment")
    parser.add_argument("--amxtrain", default=HERE.parent / "build/release/bin/amxtrain", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each program in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=["gemm", "layer", "attention", "head", "optimizer"], help="default: all")
    a = parser.parse_args()
    wanted = a.only or ["gemm", "layer", "attention", "head", "optimizer"]
    cases = [Measured(*case) for case in CASES if case[0] in wanted]
    products = []
    for number in range(a.rounds):
        if "gemm" in wanted:
            products.append(ours("gemm", None, a))
        for case in cases:
            case.round(a)
        print(f"round {number + 1} of {a.rounds}", flush=True)
    lines = (list(gemm_lines(products)) if products else []) + [line for case in cases for line in case.lines()]
    where = machine()
    result = {"machine": where, "threads": a.threads, "rounds": a.rounds, "repeat": a.repeat, "lines": lines,
              "gemm": products, "cases": [vars(case) for case in cases]}
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "ops.json").write_text(json.dumps(result, indent=1) + "\n")
    head = [f"{where['cpu']}, {where['cores']} cores, {a.threads} threads, {where['date']}; {a.rounds} rounds in turn.", ""]
    text = "\n".join(head + table(lines)) + "\n"
    (a.out / "ops.md").write_text(text)
    print("\n" + text, end="")


if __name__ == "__main__":
    main()
