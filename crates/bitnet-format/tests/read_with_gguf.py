#!/usr/bin/env python3
"""Checks with the gguf Python package the file that `cargo run --example gguf_write -- FILE` writes.

usage: read_with_gguf.py FILE
"""
import sys

import gguf
import numpy as np

reader = gguf.GGUFReader(sys.argv[1])
expected = {
    "general.architecture": "test", "general.alignment": 64, "general.file_type": 37, "u8": 255, "i8": -128, "u16": 65535,
    "i16": -32768, "i32": -(2**31), "f32": 0.5, "u64": 2**64 - 1, "i64": -(2**63), "f64": 0.1, "bool": True,
    "tokenizer.ggml.tokens": ["a", "ü", ""], "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
    "nested": [1, 2, 3],  # the package reads nested arrays flat
}
found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
assert found == expected, found

tensors = {tensor.name: tensor for tensor in reader.tensors}
assert list(tensors) == ["tq1.weight", "tq2.weight", "tq2.scale", "norm"]
assert all(tensor.data_offset % 64 == 0 for tensor in reader.tensors)
i = np.arange(4 * 512)
codes = (i * i // 7 % 3 - 1).reshape(4, 512).astype(np.float32)
for name, scale in (("tq1.weight", np.float32(np.float16(0.3))), ("tq2.weight", np.float32(1))):
    tensor = tensors[name]
    assert tensor.shape.tolist() == [512, 4]  # the file's order
    assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), codes * scale), name
    assert np.array_equal(gguf.quants.quantize(codes * scale, tensor.tensor_type), tensor.data), name
assert tensors["tq2.scale"].data.tolist() == [np.float32(0.3)]
assert tensors["norm"].data.tolist() == [1, 2, 3]
print("ok")
