#!/usr/bin/env python3
"""Loads folders that `bitnet compress` wrote in transformers, and compares them with weights that torch ternarized.

Build first:  cargo build -p bitnet-cli
usage: check_compress_transformers.py BITNET HF     (HF: the golden checkpoints, gpt2 with its weights)

For golden checkpoints and for random models of other architectures: the same tensors as in the source, none missing or
unexpected, logits or hidden states equal to those of the torch-made folder, in f16 to 1e-3 too; and codes and
scales of the packed files, unpacked here, give the dense tensors. In mode `model`, where it knows the architecture, the
dense folder gives `bitnet logits` of it. Exit status 1 where one fails.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

LLAMA = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
GOLDEN = [
    ("gpt2", r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight"),
    ("llama_tied", LLAMA), ("llama_sharded", LLAMA), ("llama_bf16", LLAMA), ("llama_untied", LLAMA),
    ("llama_all_bias", LLAMA), ("llama_head_dim", LLAMA), ("mistral", LLAMA), ("qwen2", LLAMA), ("qwen3", LLAMA),
    ("gemma", LLAMA), ("gemma2", LLAMA),
]
SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
MADE = [
    (transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4),
     r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|.*experts\..*(w[123]|(gate_up|gate|up|down)_proj))(\.weight)?"),
    (transformers.Qwen2MoeConfig(**SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
                                 moe_intermediate_size=24, shared_expert_intermediate_size=40),
     r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(experts\..*|shared_expert\.)(gate_up|gate|up|down)_proj)(\.weight)?"),
    (transformers.GPTNeoXConfig(**SMALL),
     r"gpt_neox\.layers\.\d+\.(attention\.(query_key_value|dense)|mlp\.dense_.*)\.weight"),
    (transformers.BertConfig(**SMALL),
     r"encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense|(intermediate|output)\.dense)\.weight"),
    (transformers.ViTConfig(**{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=16, patch_size=8),
     None),
]


def ternarize(w: torch.Tensor) -> torch.Tensor:
    """Per matrix, in f32, rounded once to the tensor's type."""
    if w.dim() == 3:
        return torch.stack([ternarize(expert) for expert in w])
    scale = w.double().abs().mean().float().clamp(min=1e-5)
    return ((w.float() * (1 / scale)).round().clamp(-1, 1) * scale).to(w.dtype)


def files(folder: Path):
    return sorted(folder.glob("model*.safetensors"))


def run_model(folder: Path, dtype, ids):
    config = json.loads((folder / "config.json").read_text())
    kind = AutoModelForCausalLM if "CausalLM" in str(config.get("architectures")) or "LMHead" in str(
        config.get("architectures")) else AutoModel
    model, info = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    bad = {key: list(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    if bad:
        raise SystemExit(f"{folder}: {bad}")
    with torch.no_grad():
        if config["model_type"] == "vit":
            pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(dtype)
            return model(pixel_values=pixels).last_hidden_state.float()
        out = model(input_ids=ids)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state).float()


def unpack(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that the packed files stand for, in f32 and the checkpoint's order."""
    weights = {}
    for file in files(folder / "packed"):
        with safe_open(file, "pt") as tensors:
            for name, layout in json.loads(tensors.metadata()["bitnet_two_bit"]).items():
                codes, scales = tensors.get_tensor(f"{name}.codes"), tensors.get_tensor(f"{name}.scales")
                digits = torch.stack([codes >> 2 * i & 3 for i in range(4)], -1).flatten(-2)[..., :layout["d_input"]]
                w = (digits.float() - 1) * scales.reshape(*scales.shape[:-1], 1, 1)
                weights[name] = w.transpose(-1, -2) if layout["transposed"] else w
    return weights


def check(bitnet: str, source: Path, pattern: str | None, work: Path, name: str) -> float:
    ours, half, torch_made, torch_half = (work / folder for folder in ("ours", "half", "torch", "torch_half"))
    subprocess.run([bitnet, "compress", source, ours, "--packed", "--quiet"], check=True)
    subprocess.run([bitnet, "compress", source, half, "--dtype", "f16", "--quiet"], check=True)
    shutil.copytree(source, torch_made)
    shutil.copytree(source, torch_half)
    wanted = set()
    stats = json.loads((ours / "compression_stats.json").read_text())
    chosen = {tensor["name"] for tensor in stats["tensors"] if tensor["decision"] == "ternarized"}
    packed = unpack(ours)
    for file in files(source):
        tensors, ours_file = load_file(file), load_file(ours / file.name)
        assert tensors.keys() == ours_file.keys()
        halves = {}
        for key, w in tensors.items():
            wants = re.fullmatch(pattern, key) is not None if pattern else (
                w.dim() == 2 and ".layer" in key and not key.endswith("bias"))
            halves[key] = (ternarize(w.float()) if wants else w).half() if w.is_floating_point() else w
            if wants:
                wanted.add(key)
                tensors[key] = ternarize(w)
                assert torch.equal(packed[key].to(w.dtype), ours_file[key]), f"{key}: packed is not dense"
                signs = (torch.sign(tensors[key].float()) != torch.sign(ours_file[key].float())).sum()
                assert signs == 0, f"{key}: {signs} other codes"
            else:
                assert torch.equal(w, ours_file[key]), f"{key} changed"
        save_file(halves, torch_half / file.name, metadata={"format": "pt"})
        save_file(tensors, torch_made / file.name, metadata={"format": "pt"})
    assert wanted == chosen and wanted, f"{name}: {sorted(wanted ^ chosen)}"
    ids = torch.arange(48).reshape(2, 24) * 7 % 90 + 2
    expected = run_model(torch_made, torch.float32, ids)
    worst = (run_model(ours, torch.float32, ids) - expected).abs().max().item()
    expected = run_model(torch_half, torch.float32, ids)
    in_half = (run_model(half, torch.float32, ids) - expected).abs().max().item()
    print(f"{name:<16} {len(wanted):>3} ternary, {len(stats['tensors']) - len(wanted):>3} left; "
          f"logits off by {worst:.1e}, in f16 {in_half:.1e}")
    # A scale may differ by a unit in the last place of f32, and then of the file's type.
    return 0 if worst <= 2e-5 and in_half <= 1e-3 else 1


def check_model(bitnet: str, source: Path, work: Path, name: str) -> int:
    """Mode `model`: the dense folder in transformers gives our logits of it, and so does the packed one exported."""
    ids = torch.arange(48).reshape(2, 24) * 7 % 90 + 2
    save_file({"tokens": (torch.rand(1600, generator=torch.Generator().manual_seed(1)) ** 3 * 90).to(torch.int32)}, work / "tokens")
    save_file({"input_ids": ids.to(torch.int64)}, work / "ids")
    data = f"source = {{ tokens = {{ path = '{work / 'tokens'}', tensor = 'tokens' }} }}\nwindow = 16\n"
    worst = {}
    for dtype in ("f32", "f16"):
        settings, target, out = work / f"{dtype}.toml", work / f"model_{dtype}", work / "logits"
        settings.write_text(f"mode = 'model'\ndtype = '{dtype}'\ncalibration = {{ windows = 4 }}\nverdict = {{ max_ratio = 1e9 }}\n[data]\n{data}")
        subprocess.run([bitnet, "compress", source, target, "--config", settings, "--quiet"], check=True)
        subprocess.run([bitnet, "logits", target, "--ids", work / "ids", "--out", out, "--quiet"], check=True)
        theirs = run_model(target, torch.float32, ids)
        worst[dtype] = (load_file(out)["logits"] - theirs).abs().max().item()
        report = json.loads((target / "compression_stats.json").read_text())
        assert report["mode"] == "model" and report["verification"]["differences"] == 0
    print(f"{name:<16} mode model; our logits of the dense folder off by {worst['f32']:.1e}, in f16 {worst['f16']:.1e}")
    return 0 if worst["f32"] <= 2e-5 and worst["f16"] <= 1e-3 else 1


def main() -> int:
    bitnet, golden = sys.argv[1], Path(sys.argv[2])
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, pattern in GOLDEN:
            work = Path(folder) / name
            work.mkdir()
            source = work / "source"
            shutil.copytree(golden / name, source, ignore=shutil.ignore_patterns("ref.*"))
            failures += check(bitnet, source, pattern, work, name)
            if name != "gpt2":
                failures += check_model(bitnet, source, work, name)
        for config, pattern in MADE:
            work = Path(folder) / config.model_type
            work.mkdir()
            torch.manual_seed(1)
            is_lm = config.model_type not in ("bert", "vit")
            model = (AutoModelForCausalLM if is_lm else AutoModel).from_config(config)
            model.save_pretrained(work / "source")
            failures += check(bitnet, work / "source", pattern, work, config.model_type)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
