"""Full fine-tuning by DeepSpeed's ZeRO-3 on CPUs: parameters, gradients and optimizer divided among the ranks, bf16, Gloo.

python -m torch.distributed.run --nproc_per_node=2 train_deepspeed.py --model DIR --tokens FILE.npy
"""
import time

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from peer import Rows, arguments, report

args = arguments(__doc__)
deepspeed.init_distributed(dist_backend="gloo")
rank, world = dist.get_rank(), dist.get_world_size()
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": args.accumulate,
    "gradient_clipping": args.clip,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": args.lr, "weight_decay": args.weight_decay}},
    "zero_optimization": {
        "stage": 3,
        "offload_param": {"device": "cpu"},
        "offload_optimizer": {"device": "cpu"},
        "overlap_comm": True,
        "contiguous_gradients": True,
        # Prefetch far ahead and keep small tensors whole: faster here than the defaults.
        "stage3_prefetch_bucket_size": 500_000_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_param_persistence_threshold": 1_000_000,
    },
}
divided_from_the_start = HfDeepSpeedConfig(settings)  # from_pretrained looks for it while it lives
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).train()
model.config.use_cache = False
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
rows = Rows(args.tokens, args.accumulate, rank, world)

for step in range(args.steps):
    dist.barrier()
    begin, total = time.monotonic(), torch.zeros(1)
    for ids in rows.micro_batches(step):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        total += loss.detach().float() / (args.accumulate * world)
    dist.all_reduce(total)
    if rank == 0:
        report(step, total.item(), time.monotonic() - begin, rows.tokens_per_step())
dist.destroy_process_group()
