#!/usr/bin/env python3
"""Trim the checkpoints and references of make_fixtures.py to what the tests assert.

Kept per reference: input_ids, greedy, loss, the logits of the last 12 positions (each depends on all before it), the
hidden states of row 0, and gradients: every one-dimensional tensor and two projections of the first layer, all seven
where ALL_GRADIENTS says so, and one tied embedding. Weights that two fixtures share stand in one of them; packed checkpoints and gpt2 are only refused, so their config.json is enough.

usage: trim_fixtures.py FIXTURES OUT        (FIXTURES as make_fixtures.py --out wrote them)
"""
import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

LOADED = ["llama_tied", "llama_sharded", "llama_bf16", "llama_untied", "llama_attn_bias", "llama_all_bias",
          "llama_head_dim", "llama3_rope", "qwen2", "qwen3", "mistral", "mistral_swa", "gemma", "gemma2",
          "llama_online", "bitnet_online", "bitnet_online_bf16"]
REFUSED = ["bitnet_offline_auto", "bitnet_offline_auto_bf16", "bitnet_offline_bitlinear", "llama_offline_bitlinear",
           "gpt2"]
SHARED_WEIGHTS = {"llama_online": "llama_tied", "mistral_swa": "mistral"}
ALL_GRADIENTS = ["llama_tied", "bitnet_online"]
TOKENIZER_IN = "llama_tied"
LOGIT_POSITIONS = 12


def trim(ref: dict, name: str) -> dict:
    def keep_gradient(key: str, tensor) -> bool:
        few = key.endswith(("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"))
        embedding = name == "llama_tied" and "embed_tokens" in key
        return tensor.ndim == 1 or few or embedding or name in ALL_GRADIENTS and ".layers.0." in key

    out = {key: ref[key] for key in ("input_ids", "greedy", "loss") if key in ref}
    out["logits"] = ref["logits"][:, -LOGIT_POSITIONS:]
    out |= {key: t[:1] for key, t in ref.items() if key.startswith("hidden.")}
    out |= {key: t for key, t in ref.items() if key.startswith("grad.") and keep_gradient(key, t)}
    return {key: t.contiguous().clone() for key, t in out.items()}


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name in LOADED + REFUSED:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name / "config.json", folder / "config.json")
        if name in REFUSED:
            continue
        save_file(trim(load_file(source / name / "ref.safetensors"), name), folder / "ref.safetensors")
        if name in SHARED_WEIGHTS:
            ours, theirs = (source / n / "model.safetensors" for n in (name, SHARED_WEIGHTS[name]))
            assert ours.read_bytes() == theirs.read_bytes(), name
            continue
        for file in source.joinpath(name).glob("model*"):
            shutil.copyfile(file, folder / file.name)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / TOKENIZER_IN / file, out / TOKENIZER_IN / file)
    total = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(json.dumps({"fixtures": len(LOADED + REFUSED), "megabytes": round(total / 1e6, 2)}))


if __name__ == "__main__":
    main()
