#!/usr/bin/env python3
"""amxtrain's collectives beside those of torch's Gloo, in turn, in the same set-up.

Usage: collectives.py [--nodes] [--rounds 3] [--mib 64,256] [--amxtrain build/release/bin/amxtrain] [--python python3]

Two ranks: on this machine (shared memory against Gloo on loopback), or with --nodes in two network namespaces joined by a veth pair
(needs root): Gloo under either. Prints a line for each collective and size, the median of the rounds' medians, and the ratio. Without
torch in the Python given, amxtrain's alone.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys

PEER = r'''
import json, os, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
for size in map(int, sys.argv[1].split(",")):
    n = size // 4 // world * world
    part, whole = torch.ones(n // world), torch.ones(n)
    for name, run in (("all_gather", lambda: dist.all_gather_into_tensor(whole, part)),
                      ("reduce_scatter", lambda: dist.reduce_scatter_tensor(part, whole)),
                      ("all_reduce", lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX))):
        run()
        seconds = []
        for _ in range(7):
            dist.barrier()
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        if rank == 0:
            print(json.dumps({"name": name, "bytes": size, "seconds": sorted(seconds)[3]}), flush=True)
dist.barrier()
os._exit(0)  # what torch does at its end may fail when the other process was quicker
'''


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Namespaces:
    """Two network namespaces with a veth pair between them, gone at the end."""

    names = ["amxt-bench-0", "amxt-bench-1"]

    def __enter__(self):
        for name in self.names:
            self.run("ip", "netns", "add", name)
        self.run("ip", "link", "add", "amxtb0", "type", "veth", "peer", "name", "amxtb1")
        for i, name in enumerate(self.names):
            self.run("ip", "link", "set", f"amxtb{i}", "netns", name)
            self.run("ip", "-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"amxtb{i}")
            self.run("ip", "-n", name, "link", "set", f"amxtb{i}", "up")
            self.run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    @staticmethod
    def run(*words):
        subprocess.run(words, check=True)


def rows(command, namespaces, more):
    """The JSON lines of rank 0 of two ranks of a command."""
    port, ranks = free_port(), []
    for rank in range(2):
        words = (["ip", "netns", "exec", namespaces.names[rank]] if namespaces else []) + command
        environment = dict(os.environ, RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(port),
                           LOCAL_RANK="0" if namespaces else str(rank),
                           LOCAL_WORLD_SIZE="1" if namespaces else "2",
                           MASTER_ADDR="10.77.0.1" if namespaces else "127.0.0.1")
        if namespaces:
            environment.update({name: f"amxtb{rank}" for name in more})
        ranks.append(subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL))
    texts = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"{command[0]} failed: run it alone to see why")
    return [json.loads(line) for line in texts[0].splitlines()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", default="64,256")
    parser.add_argument("--amxtrain", default="build/release/bin/amxtrain")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    sizes = ",".join(str(int(float(mib) * 2**20)) for mib in options.mib.split(","))
    ours = [options.amxtrain, "bench", "collectives", "--json", "--bytes", sizes, "--threads", "1"]
    theirs = [options.python, "-c", PEER, sizes]
    has_torch = subprocess.run([options.python, "-c", "import torch"], capture_output=True).returncode == 0
    seconds = {}

    def measure(namespaces):
        for _ in range(options.rounds):
            for who, command, more in (("amxtrain", ours, []), ("torch", theirs, ["GLOO_SOCKET_IFNAME"])):
                if who == "torch" and not has_torch:
                    continue
                for row in rows(command, namespaces, more):
                    key = row["name"], row["bytes"]
                    seconds.setdefault(key, {}).setdefault(who, []).append(row["seconds"])
                    if who == "amxtrain":
                        seconds[key]["transport"] = row["transport"]

    if options.nodes:
        with Namespaces() as namespaces:
            measure(namespaces)
    else:
        measure(None)
    for (name, size), times in seconds.items():
        if name == "memory_triad" or "amxtrain" not in times:
            continue
        own = statistics.median(times["amxtrain"])
        line = f"{name:15} {times['transport']:5} {size / 2**20:6.1f} MiB  {size / 2**30 / own:6.2f} GiB/s"
        if "torch" in times:
            peer = statistics.median(times["torch"])
            line += f"   torch's Gloo {size / 2**30 / peer:6.2f} GiB/s   {peer / own:5.2f} x"
        print(line)


if __name__ == "__main__":
    main()
