"""ggml's own matrix x vector product on one thread: a graph of one node, computed by its shared library."""
import ctypes
import time

import numpy as np

import libggml

IDS = {name: kind for kind, name in libggml.TYPES.items()}
POINTER = ctypes.c_void_p


class InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool)]


FUNCTIONS = {  # name: result, arguments
    "ggml_init": (POINTER, [InitParams]), "ggml_free": (None, [POINTER]), "ggml_get_data": (POINTER, [POINTER]),
    "ggml_new_tensor_2d": (POINTER, [POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (POINTER, [POINTER] * 3), "ggml_new_graph": (POINTER, [POINTER]),
    "ggml_build_forward_expand": (None, [POINTER] * 2), "ggml_nbytes": (ctypes.c_size_t, [POINTER]),
    "ggml_quantize_chunk": (ctypes.c_size_t, [ctypes.c_int, POINTER, POINTER] + [ctypes.c_int64] * 3 + [POINTER]),
}


class Product:
    """codes [d_output, d_input] of random trits times a random vector; `microseconds` computes it once."""

    def __init__(self, kind: str, d_output: int, d_input: int):
        ggml, self.cpu = libggml.library("ggml-base"), libggml.library("ggml-cpu")
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(ggml, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [POINTER, POINTER, ctypes.c_int]
        self.context = ggml.ggml_init(InitParams(64 << 20, None, False))
        weight = ggml.ggml_new_tensor_2d(self.context, IDS[kind], d_input, d_output)
        x = ggml.ggml_new_tensor_2d(self.context, IDS["F32"], d_input, 1)
        self.out = ggml.ggml_mul_mat(self.context, weight, x)
        self.graph = ggml.ggml_new_graph(self.context)
        ggml.ggml_build_forward_expand(self.graph, self.out)

        rng = np.random.default_rng(0)
        self.codes = rng.integers(-1, 2, (d_output, d_input)).astype(np.float32)
        self.x = rng.standard_normal(d_input, dtype=np.float32)
        ggml.ggml_quantize_chunk(IDS[kind], self.codes.ctypes.data, ggml.ggml_get_data(weight), 0, d_output, d_input, None)
        ctypes.memmove(ggml.ggml_get_data(x), self.x.ctypes.data, self.x.nbytes)
        self.result = np.ctypeslib.as_array(ctypes.cast(ggml.ggml_get_data(self.out), ctypes.POINTER(ctypes.c_float)), (d_output,))
        self.microseconds()
        off = np.abs(self.result - self.codes @ self.x).max() / np.abs(self.codes @ self.x).max()
        if not off < 0.02:
            raise ValueError(f"ggml's {kind} product is off by {off:.2g} of its largest: it did not compute what is timed")

    def microseconds(self) -> float:
        start = time.perf_counter()
        self.cpu.ggml_graph_compute_with_ctx(self.context, self.graph, 1)
        return (time.perf_counter() - start) * 1e6
