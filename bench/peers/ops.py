"""The operations of a step by torch (and DeepSpeed's AdamW), one at a time, on random data. Prints one JSON object.

python ops.py NAME SIDE,SIDE,... [--threads 2] [--repeat 5]

    attention           T,heads,kv_heads,head_dim: causal sdpa in bf16 over repeated key/value heads
    head                T,vocab,hidden: a linear layer in bf16, cross_entropy of its logits in fp32
    layer               T,hidden,intermediate,heads,kv_heads,head_dim: transformers' LlamaDecoderLayer in bf16 with sdpa
    optimizer           parameters: norm and clip, fused AdamW in fp32, a bf16 copy of the weights
    optimizer-deepspeed parameters: the same by DeepSpeedCPUAdam, as ZeRO-3 drives it
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

BF16 = torch.bfloat16


def random(*shape, scale=1.0, leaf=False):
    """Uniform in +-scale: full mantissas, as our own benchmarks use."""
    values = torch.empty(shape, dtype=BF16).uniform_(-scale, scale)
    return values.requires_grad_() if leaf else values


def attention(T, heads, kv_heads, head_dim):
    q, k, v = (random(1, T, n * head_dim, leaf=True) for n in (heads, kv_heads, kv_heads))
    dout = random(1, heads, T, head_dim)

    def forward():
        def split(x, n):
            return x.view(1, T, n, head_dim).transpose(1, 2)
        repeated = (split(x, kv_heads).repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(split(q, heads), *repeated, is_causal=True)

    return forward, lambda out: torch.autograd.grad(out, (q, k, v), dout)


def head(T, vocab, hidden):
    x, weight = random(T, hidden, leaf=True), random(vocab, hidden, scale=0.02, leaf=True)
    target = torch.randint(vocab, (T,))

    def forward():
        return F.cross_entropy(F.linear(x, weight).float(), target)

    return forward, lambda loss: torch.autograd.grad(loss, (x, weight))


def layer(T, hidden, intermediate, heads, kv_heads, head_dim):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
    config = LlamaConfig(hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads,
                         num_key_value_heads=kv_heads, head_dim=head_dim, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    module = LlamaDecoderLayer(config, 0).to(BF16).train()
    x, dout = random(1, T, hidden, leaf=True), random(1, T, hidden)
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(T)[None])
    inputs = (x, *module.parameters())

    def forward():
        out = module(x, position_embeddings=positions)
        return out[0] if isinstance(out, tuple) else out

    return forward, lambda out: torch.autograd.grad(out, inputs, dout)


def state(parameters):
    weight = torch.nn.Parameter(torch.empty(parameters).uniform_(-0.02, 0.02))
    weight.grad = torch.empty(parameters).uniform_(-1e-3, 1e-3)
    return weight, torch.empty(parameters, dtype=BF16)


def optimizer(parameters):
    weight, copy = state(parameters)
    adamw = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.01, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        adamw.step()
        copy.copy_(weight.detach())

    return step, None


def optimizer_deepspeed(parameters):
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    weight, copy = state(parameters)
    adam = DeepSpeedCPUAdam([weight], lr=1e-5, weight_decay=0.01, adamw_mode=True)

    def step():
        norm = weight.grad.norm()
        weight.grad.mul_(min(1.0, 1.0 / (norm.item() + 1e-6)))
        adam.step()
        copy.copy_(weight.detach())

    return step, None


OPERATIONS = {"attention": attention, "head": head, "layer": layer, "optimizer": optimizer,
              "optimizer-deepspeed": optimizer_deepspeed}


def seconds(run, *given):
    begin = time.perf_counter()
    result = run(*given)
    return time.perf_counter() - begin, result


def measure(forward, backward, repeat):
    """Seconds of each form, `repeat` times after one to prepare."""
    times = {"forward": [], "backward": [], "forward and backward": []}
    for _ in range(repeat + 1):
        ahead, out = seconds(forward)
        back = seconds(backward, out)[0] if backward else 0.0
        for form, value in zip(times, (ahead, back, ahead + back)):
            times[form].append(value)
    return {form: values[1:] for form, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=OPERATIONS)
    parser.add_argument("shape", type=lambda text: [int(side) for side in text.split(",")])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    times = measure(*OPERATIONS[a.name](*a.shape), a.repeat)
    rows = [{"form": form, "seconds": statistics.median(values), "seconds_least": min(values), "seconds_most": max(values)}
            for form, values in times.items() if max(values) > 0]
    if a.name.startswith("optimizer"):
        rows = [row | {"form": "norm, clip, AdamW"} for row in rows[:1]]
    print(json.dumps({"name": a.name, "shape": a.shape, "torch": torch.__version__, "threads": a.threads, "data": "random",
                      "repeat": a.repeat, "rows": rows}))


if __name__ == "__main__":
    main()
