#!/usr/bin/env python3
"""Loads folders that stage1 wrote in transformers, and compares its logits with ours at λ = 1.

Build first:  cargo build -p bitnet-cli
usage: check_stage1_transformers.py BITNET HF       (BITNET: target/debug/bitnet, HF: tests/data/hf)

For each source, placement and list of excludes: either both compute the same (mean 1e-4, max 2e-2: another order of
summation flips single codes; see near_ties.py), with no missing and no unexpected tensor, or transformers refuses the
folder where it cannot express the model. Exit status 1 where one of them fails. Dynamo is off: compiled, transformers'
own logits move by up to 4e-2.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from near_ties import rounded_the_other_way

MEAN, MAX = 1e-4, 2e-2
MARGINS = [1e-6, 3e-6, 5e-6, 1e-5, 2e-5]  # codes from a tie that are rounded the other way
BY_BOTH = [
    ("llama_tied", "none", []), ("llama_tied", "output", []), ("llama_tied", "all", []),
    ("llama_tied", "none", ["model.layers.1.*"]), ("llama_tied", "all", ["*.down_proj", "model.layers.0.*"]),
    ("llama_sharded", "output", []), ("llama_sharded", "all", []), ("llama_bf16", "output", []),
    ("llama_bf16", "all", []), ("llama_untied", "none", []), ("llama_untied", "output", []),
    ("llama_untied", "all", ["*.layers.1.mlp.*"]), ("llama_attn_bias", "output", []), ("llama_all_bias", "all", []),
    ("llama_head_dim", "all", []), ("llama3_rope", "output", []), ("mistral", "output", []), ("mistral", "all", []),
    ("qwen2", "none", []), ("qwen2", "all", []), ("qwen3", "none", []), ("qwen3", "all", []),
    ("gemma", "none", []), ("gemma", "all", []), ("gemma2", "none", []), ("gemma2", "all", []),
]
BY_US_ALONE = [
    ("llama_tied", "output", ["model.layers.1.*"]), ("llama_head_dim", "output", []), ("llama_all_bias", "output", []),
    ("qwen2", "output", []), ("qwen3", "output", []), ("gemma", "output", []), ("gemma2", "output", []),
]


def ours(bitnet: Path, hf: Path, name: str, sub_norm: str, exclude: list[str], work: Path, ids):
    folder, tokens, out = work / "out", work / "ids.safetensors", work / "logits.safetensors"
    flags = [flag for glob in exclude for flag in ("--exclude", glob)]
    subprocess.run([bitnet, "convert", hf / name, folder, "--strict", "--sub-norm", sub_norm, *flags], check=True,
                   capture_output=True)
    save_file({"input_ids": ids}, tokens)
    subprocess.run([bitnet, "logits", folder, "--ids", tokens, "--out", out], check=True)
    return folder, load_file(out)["logits"]


def theirs(folder: Path, ids):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    for tensor in [*model.parameters(), *model.buffers()]:  # a bf16 file's unquantized tensors stay bf16
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(info["missing_keys"]) <= tied and not info["unexpected_keys"], info
    n_bit = sum("BitLinear" in type(module).__name__ for module in model.modules())
    with torch.no_grad():
        runs = [model.eval()(ids, use_cache=False).logits]
        for margin in MARGINS:
            with rounded_the_other_way(margin):
                runs.append(model(ids, use_cache=False).logits)
    return type(model).__name__, n_bit, runs


def main() -> None:
    bitnet, hf = Path(sys.argv[1]), Path(sys.argv[2])
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(11))
    failed = 0
    for name, sub_norm, exclude in BY_BOTH + BY_US_ALONE:
        alone = (name, sub_norm, exclude) in BY_US_ALONE
        what = f"{name:16s} {sub_norm:7s} {' '.join(exclude):36s}"
        with tempfile.TemporaryDirectory() as work:
            folder, found = ours(bitnet, hf, name, sub_norm, exclude, Path(work), ids)
            n_converted = json.loads((folder / "report.json").read_text())["n_converted"]
            try:
                kind, n_bit, runs = theirs(folder, ids)
            except Exception as error:
                good = alone and "bitnet_arch" in str(error)
                print(what, "ok   refused:" if good else "FAIL refused:", str(error).splitlines()[0][:90], flush=True)
                failed += not good
                continue
            # Rows do not see each other, so each may follow its own run.
            nearest = [min(range(len(runs)), key=lambda i: (found[row] - runs[i][row]).abs().mean())
                       for row in range(len(ids))]
            expected = torch.stack([runs[i][row] for row, i in enumerate(nearest)])
            off = (found - expected).abs()
            good = not alone and n_bit == n_converted and off.mean() <= MEAN and off.max() <= MAX
            print(what, "ok  " if good else "FAIL", f"{kind} {n_bit} of {n_converted} slots, logit std "
                  f"{expected.std():.2f}, off by mean {off.mean():.1e}, max {off.max():.1e}"
                  + (" (near ties the other way)" if any(nearest) else ""), flush=True)
            failed += not good
    print("versions", torch.__version__, transformers.__version__)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
