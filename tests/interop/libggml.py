"""GGUF files as ggml itself reads and decodes them, through its shared library."""
import ctypes
import os
from pathlib import Path

import numpy as np
import torch

TYPES = {0: "F32", 1: "F16", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 42: "Q2_0"}  # enum ggml_type


class Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""
    _fields_ = [("type_name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("blck_size_interleave", ctypes.c_int64),
                ("type_size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool),
                ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
                ("from_float_ref", ctypes.c_void_p)]


class InitParams(ctypes.Structure):
    """`struct gguf_init_params` of gguf.h."""
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def folder() -> Path:
    """Where llama.cpp's libraries and programs are: LLAMA_CPP_LIB_PATH, else the Python binding's own."""
    if "LLAMA_CPP_LIB_PATH" in os.environ:
        return Path(os.environ["LLAMA_CPP_LIB_PATH"])
    import llama_cpp
    return Path(llama_cpp.__file__).parent / "lib"


def library(name: str) -> ctypes.CDLL:
    """llama.cpp's shared library `libNAME`."""
    for path in (folder() / f"lib{name}.so", folder() / f"lib{name}.dylib"):
        if path.exists():
            return ctypes.CDLL(str(path))
    raise FileNotFoundError(f"no lib{name} in {folder()}")


def base() -> ctypes.CDLL:
    """libggml-base with the types of the functions that are called here."""
    ggml = library("ggml-base")
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    ggml.gguf_init_from_file.argtypes, ggml.gguf_init_from_file.restype = [ctypes.c_char_p, InitParams], ctypes.c_void_p
    ggml.gguf_free.argtypes = [ctypes.c_void_p]
    for name, kind in {"n_tensors": ctypes.c_int64, "data_offset": ctypes.c_size_t}.items():
        function = getattr(ggml, f"gguf_get_{name}")
        function.argtypes, function.restype = [ctypes.c_void_p], kind
    for name, kind in {"name": ctypes.c_char_p, "type": ctypes.c_int, "offset": ctypes.c_size_t, "size": ctypes.c_size_t}.items():
        function = getattr(ggml, f"gguf_get_tensor_{name}")
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64], kind
    return ggml


def read(file: Path) -> dict[str, tuple[str, int, torch.Tensor]]:
    """Every tensor of a GGUF file: name -> its type, its size in bytes, and its values, flat, f32."""
    ggml = base()
    gguf = ggml.gguf_init_from_file(str(file).encode(), InitParams(True, None))
    if not gguf:
        raise ValueError(f"ggml refuses {file}")
    data, start, found = file.read_bytes(), ggml.gguf_get_data_offset(gguf), {}
    for i in range(ggml.gguf_get_n_tensors(gguf)):
        kind, size = ggml.gguf_get_tensor_type(gguf, i), ggml.gguf_get_tensor_size(gguf, i)
        offset = start + ggml.gguf_get_tensor_offset(gguf, i)
        blocks = np.frombuffer(data, np.uint8, size, offset)
        name = ggml.gguf_get_tensor_name(gguf, i).decode()
        found[name] = (TYPES[kind], size, torch.from_numpy(dequantize(ggml, blocks, kind)))
    ggml.gguf_free(gguf)
    return found


def dequantize(ggml: ctypes.CDLL, blocks: np.ndarray, kind: int) -> np.ndarray:
    """The values, f32, of bytes that hold blocks of one type."""
    if TYPES[kind] == "F32":
        return blocks.view(np.float32).copy()
    traits = ggml.ggml_get_type_traits(kind).contents
    if traits.type_name.decode().upper() != TYPES[kind]:
        raise ValueError(f"this ggml has {traits.type_name.decode()} under the id of {TYPES[kind]}")
    out = np.empty(blocks.size // traits.type_size * traits.blck_size, dtype=np.float32)
    traits.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def version() -> str:
    """ggml's version and commit, as the library gives them."""
    ggml = library("ggml-base")
    ggml.ggml_version.restype = ggml.ggml_commit.restype = ctypes.c_char_p
    return f"{ggml.ggml_version().decode()}, commit {ggml.ggml_commit().decode()}"
