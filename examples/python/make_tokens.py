"""Makes a token file for amxtrain with any Hugging Face tokenizer.

    pip install numpy safetensors tokenizers
    python make_tokens.py --tokenizer DIR/tokenizer.json --out train.safetensors corpus.txt pairs.jsonl

A text file is one document. Each line of a .jsonl file is one: {"text": ...}, or {"prompt": ..., "completion": ...}, where
the prompt is read but not learned (loss_weight 0). --eos appends that token to each document.
"""
import argparse, json, pathlib
import numpy
from safetensors.numpy import save_file
from tokenizers import Tokenizer


def documents(path):
    """Pairs of (prompt, text to learn)."""
    if path.suffix != ".jsonl":
        yield "", path.read_text(encoding="utf-8")
        return
    for number, line in enumerate(path.open(encoding="utf-8"), 1):
        if line.strip():
            record = json.loads(line)
            if not ("text" in record or {"prompt", "completion"} <= record.keys()):
                raise SystemExit(f"{path}: line {number} has neither text nor prompt and completion")
            yield ("", record["text"]) if "text" in record else (record["prompt"], record["completion"])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
parser.add_argument("--eos", help="token that ends a document, such as </s>")
parser.add_argument("--out", required=True, help="the safetensors file to write")
parser.add_argument("paths", nargs="+", type=pathlib.Path, metavar="PATH")
a = parser.parse_args()
tokenizer = Tokenizer.from_file(a.tokenizer)
end = [tokenizer.token_to_id(a.eos)] if a.eos else []
if end == [None]:
    raise SystemExit(f"{a.tokenizer}: no token {a.eos}")

tokens, weights, offsets = [], [], [0]
for path in a.paths:
    for prompt, text in documents(path):
        # Prompt and text apart, so that no token spans both; special tokens such as <s> only at the front.
        asked = tokenizer.encode(prompt).ids if prompt else []
        learned = tokenizer.encode(text, add_special_tokens=not prompt).ids + end
        tokens += asked + learned
        weights += [0] * len(asked) + [1] * len(learned)
        offsets.append(len(tokens))
if not tokens:
    raise SystemExit(f"{a.paths[0]}: no token in what was given")
kind = numpy.uint16 if tokenizer.get_vocab_size() <= 65536 else numpy.uint32
out = {"tokens": numpy.array(tokens, kind), "document_offsets": numpy.array(offsets, numpy.int64)}
if 0 in weights:
    out["loss_weight"] = numpy.array(weights, numpy.uint8)
save_file(out, a.out)
print(f"{a.out}: {len(offsets) - 1} documents, {len(tokens)} tokens, {weights.count(0)} of them masked")
