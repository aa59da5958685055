"""Shows that no part of these models is idle: takes out one thing at a time, with torch, and prints what moves.

    python sensitivity.py

A figure is how many times more than the tests allow (1e-5 of the loss, 1e-4 of a gradient's norm) the most affected number moves.
"""
import copy, pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from make_goldens import loss_and_gradients

LOSS_ALLOWED, GRADIENT_ALLOWED = 1e-5, 1e-4


def mutations(config, model):
    """Names with a changed configuration or a changed weight."""
    rope = config.rope_parameters
    for part in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "factor", "rope_theta"):
        if part in rope:
            changed = copy.deepcopy(config)
            changed.rope_parameters[part] = rope[part] * 1.5
            yield f"rope {part} x 1.5", changed, {}
    if rope["rope_type"] != "default":
        changed = copy.deepcopy(config)
        changed.rope_parameters = dict(rope_type="default", rope_theta=rope["rope_theta"])
        yield "no rope scaling", changed, {}
    changed = copy.deepcopy(config)
    changed.rms_norm_eps *= 10
    yield "rms_norm_eps x 10", changed, {}
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            yield f"{name} = 1", config, {name: torch.ones_like(p)}
        elif name.endswith("bias"):
            yield f"{name} = 0", config, {name: torch.zeros_like(p)}


def load(directory, config):
    return AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32, attn_implementation="eager")


idle = []
for directory in sorted(p.parent for p in pathlib.Path(__file__).parent.glob("*/golden.safetensors")):
    golden = load_file(directory / "golden.safetensors")
    config = AutoConfig.from_pretrained(directory)
    moves = {}
    for name, changed, weights in mutations(config, load(directory, config)):
        model = load(directory, changed)
        model.load_state_dict(weights, strict=False)
        values, gradients = loss_and_gradients(model, golden["tokens"], golden["labels"])
        moved = [abs(values["loss"] / golden["loss"] - 1).item() / LOSS_ALLOWED]
        for k, g in gradients.items():
            wanted = golden[f"grad.{k}"]
            moved.append(((g - wanted).norm() / wanted.norm()).item() / GRADIENT_ALLOWED)
        moves[name] = moved[0], max(moved)
    for name, (loss, most) in sorted(moves.items(), key=lambda x: x[1][1]):
        print(f"{directory.name}: {name}: loss {loss:.1f}, most {most:.0f}")
    idle += [f"{directory.name}: {name} changes next to nothing" for name, (_, most) in moves.items() if most < 5]
raise SystemExit("\n".join(idle) or None)
