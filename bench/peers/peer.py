"""What every peer shares: its arguments, which rows a rank reads, and the line it prints for each step."""
import argparse
import json

import numpy
import torch


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="Hugging Face directory; its weights are the start")
    parser.add_argument("--tokens", required=True, help=".npy with a sequence in each row")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches of one sequence to a step of a rank")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--mode", choices=["autocast", "autocast-compile", "bf16"], default="autocast",
                        help="one process only: fp32 weights with bf16 autocast, the same compiled, or all in bf16")
    return parser.parse_args()


class Rows:
    """Takes the file row by row, round and round: micro-batch a of step s on rank r is row (s * accumulate + a) * world + r."""

    def __init__(self, path, accumulate, rank=0, world=1):
        self.rows = numpy.load(path, mmap_mode="r")
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def micro_batches(self, step):
        for a in range(self.accumulate):
            row = ((step * self.accumulate + a) * self.world + self.rank) % len(self.rows)
            yield torch.from_numpy(self.rows[row : row + 1].astype(numpy.int64))

    def tokens_per_step(self):
        return self.accumulate * self.world * self.rows.shape[1]


def report(step, loss, seconds, tokens):
    """One JSON line, steps counted from 1."""
    print(json.dumps({"step": step + 1, "loss": loss, "seconds": seconds, "tokens": tokens,
                      "tokens_per_second": tokens / seconds}), flush=True)
