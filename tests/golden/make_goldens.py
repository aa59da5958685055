"""Makes the goldens of this directory with torch and transformers; README.md says what each file and tensor is.

    python make_goldens.py [--out DIR] [NAME ...]

Weights are random everywhere, norms and biases too, so that leaving one out changes the loss. Everything is computed from
the files as they lie on disk, in float32 on one thread with eager attention.
"""
import argparse, json, math, pathlib, shutil

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, get_scheduler

IGNORED = -100
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, low_freq_factor=1.0, high_freq_factor=4.0)
SMALL = dict(hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
             vocab_size=75, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, use_cache=False,
             bos_token_id=1, eos_token_id=2, pad_token_id=None)


def case(config, dtype=torch.bfloat16, length=48, **how):
    return dict(config=config, dtype=dtype, length=length, **how)


# spelling=4: config.json as transformers 4 wrote it. shards: bytes per shard. packed: also goldens of packed documents.
CASES = {
    "llama2": case(LlamaConfig(**SMALL | dict(num_key_value_heads=3, rms_norm_eps=1e-6)), dtype=torch.float32, spelling=4),
    "llama3_1": case(LlamaConfig(**SMALL | dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512),
                                 rope_parameters=LLAMA3 | dict(factor=8.0, original_max_position_embeddings=64)),
                     length=70, spelling=4),
    "llama3_2": case(LlamaConfig(**SMALL | dict(tie_word_embeddings=True, max_position_embeddings=1536), head_dim=16,
                                 rope_parameters=LLAMA3 | dict(factor=32.0, original_max_position_embeddings=48)),
                     length=64, packed=True),
    "llama_linear": case(LlamaConfig(**SMALL, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
                         length=53, spelling=4, type_key="type"),
    "llama_bias": case(LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "llama_head_dim": case(LlamaConfig(**SMALL | dict(num_attention_heads=4, num_key_value_heads=2), head_dim=24)),
    "mistral": case(MistralConfig(**SMALL, head_dim=16, sliding_window=None), shards="50KB"),
    "qwen2": case(Qwen2Config(**SMALL | dict(tie_word_embeddings=True, rms_norm_eps=1e-6), use_sliding_window=False,
                              rope_parameters=dict(rope_type="default", rope_theta=1000000.0)), length=64),
    "qwen3": case(Qwen3Config(**SMALL | dict(rms_norm_eps=1e-6), head_dim=32, use_sliding_window=False,
                              rope_parameters=dict(rope_type="default", rope_theta=1000000.0)), length=64),
    "smollm2": case(LlamaConfig(**SMALL | dict(num_hidden_layers=3, tie_word_embeddings=True),
                                rope_parameters=dict(rope_type="default", rope_theta=100000.0)), dtype=torch.float16, spelling=4),
    "odd": case(LlamaConfig(**SMALL | dict(hidden_size=80, intermediate_size=176, num_hidden_layers=1, num_attention_heads=5,
                                           vocab_size=301, tie_word_embeddings=True)), length=61),
    # All sides but the vocabulary are multiples of 32, as in real models.
    "even_llama": case(LlamaConfig(**SMALL | dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
                                                  tie_word_embeddings=True), attention_bias=True, mlp_bias=True), length=61, packed=True),
    "even_qwen3": case(Qwen3Config(**SMALL | dict(hidden_size=96, intermediate_size=160, num_attention_heads=3, rms_norm_eps=1e-6),
                                   head_dim=32, use_sliding_window=False), length=64),
}


def randomise(model, generator):
    """Every weight random: matrices of a gain at which a softmax is neither flat nor a single one."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name:
            value = 0.12 * noise
        else:
            value = 1.2 * noise / math.sqrt(p.shape[1])
        p.data = value


def check_llama3_branches(config):
    """Wavelengths must fall below, between and above the two limits, and within the sequence."""
    rope, size = config.rope_parameters, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = [2 * math.pi * rope["rope_theta"] ** (i / size) for i in range(0, size, 2)]
    low, high = (rope["original_max_position_embeddings"] / rope[k] for k in ("low_freq_factor", "high_freq_factor"))
    assert min(lengths) < high and any(high < x < low for x in lengths) and max(lengths) > low, lengths


def spell_as_4(path, type_key):
    """Rewrites a config.json of transformers 5 with the keys of transformers 4."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else rope | {type_key: kind}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.3"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_model(directory, c, generator):
    config = c["config"]
    if config.rope_parameters["rope_type"] == "llama3":
        check_llama3_branches(config)
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, generator)
    model.to(c["dtype"]).save_pretrained(directory, max_shard_size=c.get("shards", "1GB"))
    (directory / "generation_config.json").unlink(missing_ok=True)
    if c.get("spelling") == 4:
        spell_as_4(directory / "config.json", c.get("type_key", "rope_type"))


def load(directory, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").train()


def sample(c, generator, rows):
    """Tokens and unshifted labels. Rows count different numbers of tokens: a prompt and some single tokens are masked."""
    tokens = torch.randint(0, c["config"].vocab_size, (rows, c["length"]), generator=generator)
    prompt = torch.randint(0, c["length"] // 2, (rows, 1), generator=generator)
    masked = (torch.arange(c["length"]) < prompt) | (torch.rand(tokens.shape, generator=generator) < 0.1)
    return tokens, tokens.masked_fill(masked, IGNORED)


def token_losses(model, tokens, labels, **inputs):
    """Loss at each position of what the next position's label says; 0 where that is ignored. [rows, length - 1]"""
    logits = model(input_ids=tokens, **inputs).logits.float()
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")


def loss_and_gradients(model, tokens, labels, **inputs):
    losses, counts = token_losses(model, tokens, labels, **inputs).sum(1), (labels[:, 1:] != IGNORED).sum(1)
    loss = losses.sum() / counts.sum()
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad.float().clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach().reshape(1), "sequence.loss_sum": losses.detach(), "sequence.count": counts}, gradients


def adamw(model, batches, labels):
    """Ten steps, one batch each, then the loss of the last batch once more."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, norms = [], []
    for tokens, wanted in zip(batches, labels):
        values, _ = loss_and_gradients(model, tokens, wanted)
        losses.append(values["loss"])
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).reshape(1))
        optimizer.step()
    after, _ = loss_and_gradients(model, batches[-1], labels[-1])
    return {"adamw.loss": torch.cat(losses), "adamw.grad_norm": torch.cat(norms), "adamw.loss_after": after["loss"]}


def packed(model, c, generator):
    """Documents back to back: positions start again and no token sees another document. Checked document by document."""
    length = c["length"]
    starts = [[0, 1, 18, 40], [0, 37]]
    tokens, labels = sample(c, generator, len(starts))
    positions, mask = torch.zeros_like(tokens), torch.full((len(starts), 1, length, length), torch.finfo(torch.float32).min)
    alone = 0.0
    for row, first in enumerate(starts):
        labels[row, first] = IGNORED
        for begin, end in zip(first, first[1:] + [length]):
            positions[row, begin:end] = torch.arange(end - begin)
            mask[row, 0, begin:end, begin:end].triu_(1)
            if end - begin > 1:
                alone += token_losses(model, tokens[row:row + 1, begin:end], labels[row:row + 1, begin:end]).sum().item()
    values, gradients = loss_and_gradients(model, tokens, labels, position_ids=positions, attention_mask=mask)
    assert math.isclose(values["sequence.loss_sum"].sum().item(), alone, rel_tol=1e-5)
    flat = torch.tensor([row * length + x for row, first in enumerate(starts) for x in first])
    out = {"tokens": tokens, "labels": labels, "positions": positions, "document_starts": flat, **values}
    return {f"packed.{k}": v for k, v in out.items()} | {f"packed.grad.{k}": v for k, v in gradients.items()}


def make(directory, c, seed):
    generator = torch.Generator().manual_seed(seed)
    shutil.rmtree(directory, ignore_errors=True)
    write_model(directory, c, generator)
    tokens, labels = sample(c, generator, 4)
    steps, step_labels = (x.reshape(10, 2, -1) for x in sample(c, generator, 20))
    model = load(directory)
    values, gradients = loss_and_gradients(model, tokens, labels)
    torch.testing.assert_close(model(input_ids=tokens, labels=labels).loss.reshape(1), values["loss"])
    out = {"tokens": tokens, "labels": labels, **values, "adamw.tokens": steps, "adamw.labels": step_labels}
    out["grad_norm"] = torch.cat([g.flatten() for g in gradients.values()]).norm().reshape(1)
    out |= {f"grad.{name}": g for name, g in gradients.items()}
    if c.get("packed"):
        out |= packed(model, c, generator)
    out |= adamw(model, steps, step_labels)
    rounded, rounded_gradients = loss_and_gradients(load(directory, torch.bfloat16), tokens, labels)
    out["bf16.loss"] = rounded["loss"]
    for name, g in gradients.items():
        cosine = F.cosine_similarity(g.flatten().double(), rounded_gradients[name].flatten().double(), dim=0)
        out[f"bf16.cosine.{name}"] = cosine.float().reshape(1)
    save_file({k: v.contiguous() for k, v in out.items()}, directory / "golden.safetensors")
    worst = min(v.item() for k, v in out.items() if k.startswith("bf16.cosine."))
    print(f"{directory.name}: loss {values['loss'].item():.6f}, bf16 {rounded['loss'].item():.6f}, worst cosine {worst:.5f}, "
          f"AdamW {out['adamw.loss'][0]:.4f} -> {out['adamw.loss_after'].item():.4f}, "
          f"{sum(f.stat().st_size for f in directory.iterdir()) // 1024} KiB")


def rates(make_scheduler, steps=13):
    """The learning rate that each of the first steps is taken with, from a base of 1."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, out = make_scheduler(optimizer), []
    for _ in range(steps):
        out.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return out


def schedules():
    from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupDecayLR, WarmupLR
    out = []

    def add(source, name, make_scheduler, **parameters):
        out.append({"source": source, "name": name, "parameters": parameters,
                    "lr": rates(lambda optimizer: make_scheduler(optimizer, parameters))})

    for name in ("linear", "cosine", "constant_with_warmup"):
        for warmup in (0, 3):
            add("transformers", name, lambda o, p: get_scheduler(name, o, **p), num_warmup_steps=warmup, num_training_steps=10)
    for kind in ("log", "linear"):
        for minimum in (0.0, 0.1):
            bounds = dict(warmup_min_lr=minimum, warmup_max_lr=1.0, warmup_num_steps=3, warmup_type=kind)
            add("deepspeed", "WarmupLR", lambda o, p: WarmupLR(o, **p), **bounds)
            add("deepspeed", "WarmupDecayLR", lambda o, p: WarmupDecayLR(o, **p), total_num_steps=10, **bounds)
            add("deepspeed", "WarmupCosineLR", lambda o, p: WarmupCosineLR(o, **p), total_num_steps=10, warmup_num_steps=3,
                warmup_min_ratio=minimum, cos_min_ratio=minimum / 10, warmup_type=kind)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of " + ", ".join([*CASES, "schedules"]) + "; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for seed, name in enumerate(CASES):
        if not arguments.names or name in arguments.names:
            make(arguments.out / name, CASES[name], seed)
    if not arguments.names or "schedules" in arguments.names:
        (arguments.out / "schedules.json").write_text("[\n" + ",\n".join(map(json.dumps, schedules())) + "\n]\n")
