"""The gguf package and libggml read our files and give back our codes and scales."""
import json
from pathlib import Path

import gguf
import torch

import libggml
from models import RUN_BY_LLAMA, Model, Models
from report import Report
from ternary import PROJECTIONS, interleaved, projections

WEIGHTS_PER_BLOCK = {"tq1_0": 256, "tq2_0": 256, "q2_0": 64, "f16": 1, "f32": 1}
F16_STEP = 2.0**-11  # how far rounding to f16 moves a number, relative to it


def run(report: Report, models: Models) -> None:
    report.note(f"{len(RUN_BY_LLAMA)} models: {', '.join(RUN_BY_LLAMA)}. The codes and scales to find are made by torch from the "
                "latent weights. Expected of a file, too: a projection whose width the block does not divide is F16.")
    for kind, block in WEIGHTS_PER_BLOCK.items():
        for scale in ["tensor", "block"] if block > 1 else ["tensor"]:
            results = {"gguf package": {}, "libggml": {}}
            if kind == "q2_0":
                del results["gguf package"]  # it does not know the type
            for name in RUN_BY_LLAMA:
                with report.part(f"{name}, {kind}, scale per {scale}"):
                    wanted = expected(models.get(name))
                    file = models.exported(name, f"gguf-{kind}", *(["--scale", "block"] if scale == "block" else []))
                    for reader, found in results.items():
                        tensors = READERS[reader](file)
                        found |= {f"{name} {key}": held for key, held in compare(tensors, wanted, kind, block).items()}
            for reader, found in results.items():
                report.equal(f"{kind}, scale per {scale}, read by {reader}: projections with our type, codes and scale", found)


def read_with_package(file: Path) -> dict[str, tuple[str, int, torch.Tensor]]:
    """As `libggml.read`, by the gguf package."""
    return {t.name: (t.tensor_type.name, int(t.n_bytes), torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)).flatten())
            for t in gguf.GGUFReader(file).tensors}


READERS = {"gguf package": read_with_package, "libggml": libggml.read}


def expected(model: Model) -> dict[str, tuple[torch.Tensor, float]]:
    """Codes [d_output, d_input] and scale of each projection by its name in the file, from the latent folder by torch."""
    config = json.loads((model.folder / "config.json").read_text())
    n_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for layer, ternary in projections(model.folder).items():
        number, name = layer.split(".")[2], PROJECTIONS[".".join(layer.split(".")[3:])]
        permuted = model.architecture == "llama" and name in n_heads
        codes = interleaved(ternary.codes, n_heads[name]) if permuted else ternary.codes
        found[f"blk.{number}.{name}"] = (codes, ternary.scale)
    return found


def compare(tensors: dict, wanted: dict, kind: str, block: int) -> dict[str, bool]:
    """For each projection whether its type, its codes and its scale are the expected ones."""
    results = {}
    for name, (codes, scale) in wanted.items():
        found_kind, _, values = tensors[f"{name}.weight"]
        bare = f"{name}.scale" in tensors  # codes alone, the exact scale beside them; else it is in the blocks, rounded
        values = (values * tensors[f"{name}.scale"][2] if bare else values).reshape(codes.shape)
        step = 1e-6 if bare or found_kind == "F32" else F16_STEP
        results[name] = (found_kind == (kind.upper() if codes.shape[1] % block == 0 else "F16")
                         and torch.equal((values / scale).round(), codes)
                         and (values - codes * scale).abs().max().item() <= step * scale)
    return results
