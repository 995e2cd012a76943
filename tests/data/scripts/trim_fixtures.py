#!/usr/bin/env python3
"""Trim the checkpoints and references of make_fixtures.py to what the tests assert.

Kept per reference: input_ids, greedy, loss, the logits of the last 12 positions (each depends on all before it), the
hidden states of row 0, and gradients: every one-dimensional tensor and two projections of the first layer, all seven
where ALL_GRADIENTS says so, and one tied embedding. Weights that two fixtures share stand in one of them; gpt2 is only
refused, so its config.json is enough. Of packed checkpoints, input_ids, greedy and the last logits are kept.

Where activations are quantized, logits and hidden states stay whole, and beside each result stands that of a second
run of transformers (`other.logits` and so on), in which every activation within 5e-6 codes of a tie is rounded the
other way: each of these checkpoints has one, a few units in the last place from a tie, so that two equally valid orders of
summation round it apart, which moves later logits by up to 6e-2. In one of the packed checkpoints, where transformers
sums in another order than for latent weights, the nearest is 1e-5 codes away (MARGINS).

usage: trim_fixtures.py FIXTURES OUT        (FIXTURES as make_fixtures.py --out wrote them)
"""
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # transformers' bitnet code is @torch.compile'd
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from near_ties import NEAR_TIE, rounded_the_other_way

LOADED = ["llama_tied", "llama_sharded", "llama_bf16", "llama_untied", "llama_attn_bias", "llama_all_bias",
          "llama_head_dim", "llama3_rope", "qwen2", "qwen3", "mistral", "mistral_swa", "gemma", "gemma2",
          "llama_online", "bitnet_online", "bitnet_online_bf16"]
PACKED = ["bitnet_offline_auto", "bitnet_offline_auto_bf16", "llama_offline_bitlinear"]
REFUSED = ["gpt2"]
MARGINS = {"bitnet_offline_auto": 2e-5}
SHARED_WEIGHTS = {"llama_online": "llama_tied", "mistral_swa": "mistral"}
QUANTIZED = ["llama_online", "bitnet_online", "bitnet_online_bf16"]
ALL_GRADIENTS = ["llama_tied", "bitnet_online"]
TOKENIZER_IN = "llama_tied"
LOGIT_POSITIONS = 12


def last(logits):
    return logits[:, -LOGIT_POSITIONS:].contiguous().clone()


def trim(ref: dict, name: str) -> dict:
    def keep_gradient(key: str, tensor) -> bool:
        few = key.endswith(("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"))
        embedding = name == "llama_tied" and "embed_tokens" in key
        return tensor.ndim == 1 or few or embedding or name in ALL_GRADIENTS and ".layers.0." in key

    out = {key: ref[key] for key in ("input_ids", "greedy", "loss") if key in ref}
    if name in PACKED:
        return {key: ref[key].clone() for key in ("input_ids", "greedy")} | {"logits": last(ref["logits"])}
    quantized = name in QUANTIZED
    out["logits"] = ref["logits"] if quantized else last(ref["logits"])
    out |= {key: t if quantized else t[:1] for key, t in ref.items() if key.startswith("hidden.")}
    out |= {key: t for key, t in ref.items() if key.startswith("grad.") and keep_gradient(key, t)}
    return {key: t.contiguous().clone() for key, t in out.items()}


def other_run(folder: Path, ids) -> dict:
    """The results of the second run."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():  # bf16 checkpoints leave tensors in their own dtype
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data
    packed = folder.name in PACKED
    with rounded_the_other_way(MARGINS.get(folder.name, NEAR_TIE)) as moved, torch.set_grad_enabled(not packed):
        out = model(ids, labels=ids, use_cache=False, output_hidden_states=True)
    print(folder.name, "near ties", moved)
    if packed:
        return {"logits": last(out.logits)}
    out.loss.backward()
    run = {"logits": out.logits, "loss": out.loss.reshape(1)}
    run |= {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}
    run |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {key: t.detach() for key, t in run.items()}


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name in LOADED + PACKED + REFUSED:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name / "config.json", folder / "config.json")
        if name in REFUSED:
            continue
        ref = trim(load_file(source / name / "ref.safetensors"), name)
        if name in QUANTIZED + PACKED:
            other = other_run(source / name, ref["input_ids"])
            ref |= {f"other.{key}": other[key].contiguous() for key in ref if key in other}
        save_file(ref, folder / "ref.safetensors")
        if name in SHARED_WEIGHTS:
            ours, theirs = (source / n / "model.safetensors" for n in (name, SHARED_WEIGHTS[name]))
            assert ours.read_bytes() == theirs.read_bytes(), name
            continue
        for file in source.joinpath(name).glob("model*"):
            shutil.copyfile(file, folder / file.name)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / TOKENIZER_IN / file, out / TOKENIZER_IN / file)
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(json.dumps({"fixtures": len(LOADED + PACKED + REFUSED), "megabytes": round(total / 1e6, 2)}))


if __name__ == "__main__":
    main()
