#!/usr/bin/env python3
"""Makes the files in golden/ with the gguf Python package (0.19), numpy and torch, none of this project's code.

usage: make_goldens.py MODELS

MODELS holds `gguf/{llama_tied,bitnet_silu}_{TQ1_0,TQ2_0}.gguf` with their parents `gguf/*_hf/model.safetensors`, and
`hf/*_offline_*/model.safetensors` with their parents: tiny random models, converted by transformers and gguf.

- all_types.gguf: every metadata type, arrays of each, nested arrays, an alignment of 64, one tensor of several types.
- NAME.gguf: the metadata and some tensors of the four models, bytes unchanged.
- hf.bin: packed tensors of the offline checkpoints, one after the other.
- expected.json: what the tensors' codes and scales are, from the parents' float weights: sha256 of the codes as int8,
  row-major, and the scale. For GGUF a second digest is of the tensor's bytes. And the package's table of tensor types:
  id, weights per block, bytes per block.
"""
import hashlib
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.torch import load_file

OUT = Path(__file__).parent / "golden"
PARENTS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "ffn_down": "mlp.down_proj"}
HEADS = {"attn_q": 4, "attn_k": 2}


def sha(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def ternary(weight: torch.Tensor):
    """Absmean codes and scale of latent weights."""
    scale = weight.float().abs().mean().clamp(min=1e-5)
    return (weight.float() * (1.0 / scale)).round().clamp(-1, 1).to(torch.int8).numpy(), float(scale)


def bare(weight: torch.Tensor):
    """Codes and scale of weights that are ternary already."""
    return weight.sign().to(torch.int8).numpy(), float(weight.abs().max())


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head: the two halves of the rotation side by side."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def all_types():
    w = gguf.GGUFWriter(OUT / "all_types.gguf", "test")
    w.add_custom_alignment(64)
    w.add_uint8("u8", 200), w.add_int8("i8", -100), w.add_uint16("u16", 60000), w.add_int16("i16", -30000)
    w.add_uint32("u32", 4000000000), w.add_int32("i32", -2000000000), w.add_float32("f32", 0.1)
    w.add_uint64("u64", 2**63 + 1), w.add_int64("i64", -(2**62)), w.add_float64("f64", 0.1)
    w.add_bool("yes", True), w.add_bool("no", False), w.add_string("string", "grüße\n"), w.add_key_value("empty", "", gguf.GGUFValueType.STRING)
    w.add_array("strings", ["a", "", "ü"]), w.add_array("i32s", [1, -2, 3]), w.add_array("f32s", [0.5, -0.25])
    w.add_array("bools", [True, False]), w.add_array("nested", [[1, 2], [3]]), w.add_array("bytes", b"\x00\xff")
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 2, (2, 512)).astype(np.int8)
    codes[1, 256:] = 0
    for kind in (Q.TQ1_0, Q.TQ2_0, Q.Q8_0, Q.Q4_0):
        w.add_tensor(kind.name, gguf.quants.quantize(codes.astype(np.float32) * 0.375, kind), raw_dtype=kind)
    w.add_tensor("F32", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    w.add_tensor("F16", np.array([0.5], np.float16)), w.add_tensor("I8", codes[0, :5])
    w.add_tensor("BF16", gguf.quants.quantize(np.ones((1, 2), np.float32), Q.BF16), raw_dtype=Q.BF16)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return sha(codes)


def trim(models: Path, name: str, expected: list):
    """Keeps the metadata without the tokenizer's lists, and block 0's q, k and down projection."""
    reader = gguf.GGUFReader(models / f"gguf/{name}.gguf")
    arch = reader.fields["general.architecture"].contents()
    parent = load_file(models / f"gguf/{name.rsplit('_', 2)[0]}_hf/model.safetensors")
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and gguf.GGUFValueType.ARRAY not in field.types:
            w.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        role = tensor.name.split(".")[-2]
        if tensor.name == "output_norm.weight":
            w.add_tensor(tensor.name, tensor.data)
        if role not in PARENTS:
            continue
        block = tensor.name.split(".")[1]
        weight = parent[f"model.layers.{block}.{PARENTS[role]}.weight"]
        codes, scale = bare(weight) if arch == "llama" else ternary(weight)
        if arch == "llama" and role in HEADS:
            codes = interleave(codes, HEADS[role])
        if block == "0":
            w.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            expected.append(dict(file=f"{name}.gguf", tensor=tensor.name, shape=list(codes.shape), codes=sha(codes),
                                 scale=float(np.float16(scale)), bytes=sha(tensor.data)))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def offline(models: Path, name: str, parent: str, direction: str, out, expected: list):
    packed, latent = (load_file(models / f"hf/{folder}/model.safetensors") for folder in (name, parent))
    for role in ("self_attn.k_proj", "mlp.down_proj"):
        key = f"model.layers.1.{role}"
        codes, scale = ternary(latent[f"{key}.weight"])
        data = packed[f"{key}.weight"].numpy()
        expected.append(dict(checkpoint=name, tensor=key, at=out.tell(), len=data.nbytes, shape=list(codes.shape),
                             codes=sha(codes), direction=direction, scale=scale,
                             weight_scale=float(packed[f"{key}.weight_scale"].float())))
        out.write(data.tobytes())


def main():
    models = Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    trimmed, packed = [], []
    codes = all_types()
    for name in ("llama_tied_TQ1_0", "llama_tied_TQ2_0", "bitnet_silu_TQ1_0", "bitnet_silu_TQ2_0"):
        trim(models, name, trimmed)
    with open(OUT / "hf.bin", "wb") as out:
        offline(models, "llama_offline_bitlinear", "llama_tied", "divide", out, packed)
        offline(models, "bitnet_offline_bitlinear", "bitnet_online", "divide", out, packed)
        offline(models, "bitnet_offline_auto", "bitnet_online", "multiply", out, packed)
        offline(models, "bitnet_offline_auto_bf16", "bitnet_online_bf16", "multiply", out, packed)
    rows = lambda items: "[\n  " + ",\n  ".join(json.dumps(item) for item in items) + "\n ]"
    table = {kind.name: [kind.value, *gguf.GGML_QUANT_SIZES[kind]] for kind in Q}
    text = f'{{\n "tensor_types": {json.dumps(table)},\n "all_types_codes": "{codes}",\n "gguf": {rows(trimmed)},\n "hf": {rows(packed)}\n}}\n'
    (OUT / "expected.json").write_text(text)


if __name__ == "__main__":
    main()
