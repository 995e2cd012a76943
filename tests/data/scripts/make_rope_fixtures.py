#!/usr/bin/env python3
"""References for RoPE scaling and for Qwen 2's sliding window: the weights of data/hf, other configs.

Each fixture is a folder  OUT/<name>/  with config.json and ref.safetensors: `input_ids` [1, T] and the logits of the
last 12 positions, f32, eager attention; for GENERATED `greedy` too. The weights are those of data/hf/llama_tied (or qwen2), so none are stored.

usage: make_rope_fixtures.py HF OUT        (HF as trim_fixtures.py wrote it)
"""
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

LOGIT_POSITIONS = 12
ROPE = "llama_tied"
GENERATED, PROMPT = "dynamic_long", 28  # greedy tokens from before max_position_embeddings to beyond it


def rope(kind: str, **fields) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


FIXTURES = {  # name: (weights, sequence length, changes of the config)
    "linear": (ROPE, 40, rope("linear", factor=4.0)),
    "dynamic_short": (ROPE, 24, dict(max_position_embeddings=32, **rope("dynamic", factor=2.0))),
    "dynamic_long": (ROPE, 56, dict(max_position_embeddings=32, **rope("dynamic", factor=2.0))),
    "llama3": (ROPE, 40, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=32)),
    "yarn": (ROPE, 40, rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "yarn_betas": (ROPE, 40, rope("yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0,
                                  beta_slow=2.0)),
    "yarn_no_truncate": (ROPE, 40, rope("yarn", factor=4.0, original_max_position_embeddings=64, truncate=False)),
    "yarn_mscale": (ROPE, 40, rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.8,
                                   mscale_all_dim=0.5)),
    "yarn_mscale_alone": (ROPE, 40, rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.8)),
    "yarn_attention_factor": (ROPE, 40, rope("yarn", factor=4.0, original_max_position_embeddings=64,
                                             attention_factor=0.7)),
    "qwen2_sliding": ("qwen2", 40, dict(use_sliding_window=True, sliding_window=8, max_window_layers=1,
                                        layer_types=None)),
}


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(2)
    for name, (weights, length, changes) in FIXTURES.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        written = json.loads((source / weights / "config.json").read_text()) | changes
        written = {key: value for key, value in written.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        missing, unexpected = model.load_state_dict(load_file(source / weights / "model.safetensors"), strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unexpected, (name, missing, unexpected)
        model.tie_weights()
        ids = torch.randint(0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[:, -LOGIT_POSITIONS:]
        ref = {"input_ids": ids, "logits": logits.contiguous()}
        if name == GENERATED:
            prompt = ids[:, :PROMPT]
            ref["greedy"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12,
                                           do_sample=False, eos_token_id=None, pad_token_id=0)
        save_file(ref, folder / "ref.safetensors")
        print(f"{name:24s} {type(model).__name__:20s} T {length}  logits {logits[0, -1, :3].tolist()}", flush=True)
    print("versions", torch.__version__, transformers.__version__)


if __name__ == "__main__":
    main()
