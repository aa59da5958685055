#!/usr/bin/env python3
"""Loads a model on several ranks and writes as JSON what it cost, seen from outside: bytes read from disk, memory above the final state.

python bench/load.py --model DIR --data FILE [--ranks 2] [--amxtrain build/release/bin/amxtrain]

The shards are put out of the page cache first. Bytes are read_bytes of /proc/PID/io, over all ranks; memory is the proportional
set size (PSS) of each rank, sampled, while it loads and once its weights are there.
"""
import argparse
import json
import os
import pathlib
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent


def evict(shards):
    for shard in shards:
        descriptor = os.open(shard, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def field(path, name):
    try:
        for line in pathlib.Path(path).read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    except OSError:
        pass  # it has just ended
    return 0


def ranks_below(root):
    """Processes named amxtrain that have no child of that name: the launcher is none."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            if name == "amxtrain":
                parents[int(entry.name)] = int(rest.split()[1])
    found = {root} if root in parents else set()
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - set(parents.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--amxtrain", default=str(HERE.parent / "build/release/bin/amxtrain"))
    parser.add_argument("--hertz", type=float, default=100)
    a = parser.parse_args()
    shards = sorted(a.model.glob("*.safetensors"))
    evict(shards)
    train = [a.amxtrain, "train", "--model", str(a.model), "--data", a.data, "--no-save", "--steps", "1", "--seq-len", "64",
             "--accumulate", "1"]
    argv = train if a.ranks == 1 else [a.amxtrain, "launch", "--nproc-per-node", str(a.ranks), "--", *train]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, read, loaded = {}, {}, threading.Event()

    def sample():
        while not loaded.is_set():
            for pid in ranks_below(process.pid):
                peak[pid] = max(peak.get(pid, 0), field(f"/proc/{pid}/smaps_rollup", "Pss") * 1024)
                read[pid] = max(read.get(pid, 0), field(f"/proc/{pid}/io", "read_bytes"))
            time.sleep(1 / a.hertz)

    sampler = threading.Thread(target=sample)
    sampler.start()
    stages = {}
    for line in process.stdout:
        if line.startswith("memory after load"):
            loaded.set()
        if line.startswith("memory "):
            stages[line[7:].partition(":")[0]] = line.partition(":")[2].strip()
    loaded.set()
    sampler.join()
    code = process.wait()
    if code != 0:
        raise SystemExit(f"{' '.join(argv)} ended with {code}")
    bytes_of_shards = sum(shard.stat().st_size for shard in shards)
    print(json.dumps({"ranks": a.ranks, "shards": len(shards), "shard_bytes": bytes_of_shards,
                      "read_bytes_all_ranks": sum(read.values()), "read_ratio": round(sum(read.values()) / bytes_of_shards, 4),
                      "peak_pss_while_loading_by_rank": sorted(peak.values()), "stages": stages}, indent=1))


if __name__ == "__main__":
    main()
