#!/usr/bin/env python3
"""Trains over several nodes, which are network namespaces of this machine, and writes as JSON what passed the wire and was waited for.

python bench/nodes.py --model DIR --data FILE [--nodes 2] [--ranks 1] [--rate 1gbit] [--steps 6] [--amxtrain build/release/bin/amxtrain]

Needs root, ip and tc. Each node has one interface, shaped to --rate in both directions; the bytes are those that the kernel counts at
it, from one step's end to another's, headers included, beside the least that ZeRO-3 can send: what a node lacks of the weights twice,
of the gradients once. With --compare the job runs in turn with and without fetching ahead, --rounds times; figures are medians over
steps and rounds.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PREFIX = "amxt-bench"


def sh(command, check=True):
    return subprocess.run(command, shell=True, check=check, capture_output=True, text=True).stdout


class Network:
    """Namespaces of the nodes, joined by a bridge in one more."""

    def __init__(self, nodes, rate):
        self.nodes, self.rate = nodes, rate

    def __enter__(self):
        self.__exit__()
        try:
            sh(f"ip netns add {PREFIX}-hub && ip -n {PREFIX}-hub link add hub type bridge && ip -n {PREFIX}-hub link set hub up")
            for node in range(self.nodes):
                name = f"{PREFIX}-{node}"
                sh(f"ip netns add {name} && ip -n {name} link set lo up")
                sh(f"ip -n {name} link add eth0 type veth peer name port{node} netns {PREFIX}-hub")
                sh(f"ip -n {PREFIX}-hub link set port{node} master hub up")
                sh(f"ip -n {name} addr add 10.77.0.{node + 1}/24 dev eth0 && ip -n {name} link set eth0 up")
                if self.rate != "none":
                    for where, device in ((name, "eth0"), (f"{PREFIX}-hub", f"port{node}")):
                        sh(f"ip netns exec {where} tc qdisc add dev {device} root tbf rate {self.rate} burst 512kb latency 100ms")
        except subprocess.CalledProcessError as failure:
            raise SystemExit(f"no network namespaces: {failure.stderr.strip()}")
        return self

    def __exit__(self, *_):
        for name in [f"{PREFIX}-{node}" for node in range(self.nodes)] + [f"{PREFIX}-hub"]:
            sh(f"ip netns delete {name}", check=False)

    def sent_bytes(self):
        return sum(int(sh(f"ip netns exec {PREFIX}-{node} cat /sys/class/net/eth0/statistics/tx_bytes"))
                   for node in range(self.nodes))


def lines_of(path):
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError):
        return []


def run(options, network, extra):
    """One job: per-step figures of the steps after the first, with the bytes of the interfaces between them."""
    world = options.nodes * options.ranks
    with tempfile.TemporaryDirectory() as folder:
        metrics = pathlib.Path(folder) / "metrics.jsonl"
        ranks = []
        for rank in range(world):
            node = rank // options.ranks
            environment = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank % options.ranks),
                               LOCAL_WORLD_SIZE=str(options.ranks), MASTER_ADDR="10.77.0.1", MASTER_PORT="29555")
            command = ["ip", "netns", "exec", f"{PREFIX}-{node}", options.amxtrain, "train", "--model", str(options.model),
                       "--data", options.data, "--steps", str(options.steps), "--seq-len", str(options.sequence),
                       "--micro-batch", "1", "--accumulate", str(options.accumulate), "--threads", str(options.threads),
                       "--no-save", *extra]
            if rank == 0:
                command += ["--metrics", str(metrics)]
            log = open(pathlib.Path(folder) / f"rank{rank}.log", "w+")
            ranks.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
        sent = {}
        while any(process.poll() is None for process, _ in ranks):
            step = len(lines_of(metrics))
            if step not in sent:
                sent[step] = network.sent_bytes()
            time.sleep(0.005)
        sent.setdefault(len(lines_of(metrics)), network.sent_bytes())
        for process, log in ranks:
            if process.returncode != 0:
                log.seek(0)
                raise SystemExit(f"a rank ended with {process.returncode}: {log.read()[-2000:]}")
        steps = lines_of(metrics)
    bytes_of_steps = [sent[n] - sent[n - 1] for n in range(2, len(steps)) if n in sent and n - 1 in sent]
    return steps[1:], bytes_of_steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1, help="of a node")
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--rate", default="1gbit", help="of each interface, as tc takes it; none: not shaped")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compare", action="store_true", help="with and without fetching ahead, in turn")
    parser.add_argument("--amxtrain", default=str(HERE.parent / "build/release/bin/amxtrain"))
    options = parser.parse_args()

    parameters = json.loads(subprocess.check_output(
        [options.amxtrain, "inspect", "--json", str(options.model)]))["parameters"]
    # Bytes that all nodes together lack: each byte of the model at all nodes but one.
    least = (2 * 2 + 2) * parameters * (options.nodes - 1)
    ways = {"fetching ahead": []} | ({"one deal at a time": ["--prefetch-parameters", "0"]} if options.compare else {})
    seconds, waits, sent, losses = ({way: [] for way in ways} for _ in range(4))
    for _ in range(options.rounds):
        for way, extra in ways.items():
            with Network(options.nodes, options.rate) as network:
                steps, bytes_of_steps = run(options, network, extra)
            seconds[way] += [step["seconds"] for step in steps]
            waits[way] += [step["wire_wait_seconds"] for step in steps]
            sent[way] += bytes_of_steps
            losses[way] = [step["loss"] for step in steps]
    rows = [{"way": way, "seconds": statistics.median(seconds[way]), "wait_seconds": statistics.median(waits[way]),
             "bytes_per_step": statistics.median(sent[way]) if sent[way] else None,
             "bytes_to_least": statistics.median(sent[way]) / least if sent[way] else None,
             "losses": losses[way]} for way in ways]
    print(json.dumps({"nodes": options.nodes, "ranks_per_node": options.ranks, "rate": options.rate,
                      "tokens_per_rank": options.accumulate * options.sequence, "parameters": parameters,
                      "least_bytes_per_step": least, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
