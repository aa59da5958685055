"""Full fine-tuning by plain PyTorch in one process, with fp32 weights and bf16 autocast as its users run it.

python train_torch.py --model DIR --tokens FILE.npy
"""
import time

import torch
from transformers import AutoModelForCausalLM

from peer import Rows, arguments, report

args = arguments(__doc__)
precision = torch.bfloat16 if args.mode == "bf16" else torch.float32
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=precision).train()
model.config.use_cache = False
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
forward = torch.compile(model) if args.mode == "autocast-compile" else model
rows = Rows(args.tokens, args.accumulate)

for step in range(args.steps):
    begin, total = time.monotonic(), 0.0
    for ids in rows.micro_batches(step):
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mode != "bf16"):
            loss = forward(input_ids=ids, labels=ids).loss / args.accumulate
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
    optimizer.step()
    optimizer.zero_grad()
    report(step, total, time.monotonic() - begin, rows.tokens_per_step())
