"""The formulas of docs/numerics.md and the packing of docs/formats.md in torch, independent of the Rust code."""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ties import MARGIN_F16, across

PROJECTIONS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


@dataclass
class Ternary:
    codes: torch.Tensor  # f32 [d_output, d_input], -1, 0 or 1
    scale: float  # value = codes * scale


def ternarize(weight: torch.Tensor) -> Ternary:
    """Absmean: scale = max(mean|w|, 1e-5), codes = clamp(round(w * (1/scale)), -1, 1), ties to even."""
    weight = weight.float()
    scale = weight.double().abs().mean().float().clamp(min=1e-5)
    return Ternary((weight * (1 / scale)).round().clamp(-1, 1), scale.item())


def unpack_hf(packed: torch.Tensor) -> torch.Tensor:
    """u8 [d_output / 4, d_input] -> codes f32 [d_output, d_input]: row block i is in bits 2i and 2i + 1."""
    return torch.cat([((packed >> (2 * i)) & 3).float() - 1 for i in range(4)])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def projections(folder: Path) -> dict[str, Ternary]:
    """Codes and scale of each projection of a folder, latent or packed: `model.layers.N.X` -> Ternary."""
    state, config = tensors(folder), json.loads((folder / "config.json").read_text())
    divides = (config.get("quantization_config") or {}).get("linear_class", "bitlinear") == "bitlinear"
    found = {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if ".".join(layer.split(".")[-2:]) not in PROJECTIONS or layer == name:
            continue
        if tensor.dtype == torch.uint8:
            scale = state[f"{name}_scale"].float().item()
            found[layer] = Ternary(unpack_hf(tensor), 1 / scale if divides else scale)
        else:
            found[layer] = ternarize(tensor)
    return found


def interleaved(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of q or k in the order of llama.cpp's `llama`: new row 2j + p of a head = old row p * head_dim/2 + j."""
    head_dim = rows.shape[0] // n_heads
    return rows.reshape(n_heads, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


# Activations: x f32 [batch, .., d_input] -> what the named engine multiplies instead.


def exact(x):
    return x


def remember(rounding):
    """Query, key and value round the same input: it is rounded once, and its ties are the same for all."""
    last = [None, None]

    def remembered(x):
        if last[0] is not x:
            last[:] = x, rounding(x)
        return last[1]

    return remembered


def moved(x, inverse, blocks):
    """`x` in blocks, with the ties that the run in progress rounds the other way."""
    return across(x, inverse.expand_as(blocks).reshape(x.shape)).reshape(blocks.shape)


def f16(x):
    """llama.cpp beside F16 weights, in some of its paths."""
    return x.half().float()


@remember
def q8_k(x):
    """llama.cpp beside TQ1_0 and TQ2_0: int8 per 256 inputs, -127 at the largest, whose sign the scale takes."""
    blocks = x.reshape(len(x), -1, 256)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(largest == 0, 0, -127 / largest)
    codes = (moved(x, inverse, blocks) * inverse).round().clamp(max=127)
    return torch.where(inverse == 0, 0, codes * (1 / inverse)).reshape(x.shape)


@remember
def q8_0(x):
    """llama.cpp beside Q2_0: int8 per 32 inputs, the scale rounded to f16 after the codes are made."""
    blocks = x.reshape(len(x), -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest == 0, 0, 127 / largest)
    codes = (moved(x, inverse, blocks) * inverse).round()
    scale = (largest / 127).reshape(*x.shape[:-1], -1)
    last_place = torch.exp2(scale.clamp(min=2**-14).log2().floor() - 10)
    scale = across(scale, 1 / last_place, MARGIN_F16).half().float()
    return (codes * scale.reshape(largest.shape)).reshape(x.shape)


ACTIVATIONS = {"F32": exact, "F16": f16, "TQ1_0": q8_k, "TQ2_0": q8_k, "Q2_0": q8_0}


class Emulated(torch.nn.Module):
    """A linear map as an engine computes it: `rounding(x) · weightᵀ · scale + bias`."""

    def __init__(self, weight, scale: float, bias, rounding):
        super().__init__()
        self.weight, self.scale, self.bias, self.rounding = weight, scale, bias, rounding

    def forward(self, x):
        y = F.linear(self.rounding(x), self.weight) * self.scale
        return y if self.bias is None else y + self.bias


def compare(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Logits [.., vocab] against the expected ones: differences, mean KL(expected ‖ found), share of equal top-1."""
    off = (found - expected).abs()
    kl = F.kl_div(found.double().log_softmax(-1), expected.double().log_softmax(-1), log_target=True, reduction="none")
    top1 = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    return {"max": off.max().item(), "mean": off.mean().item(), "kl": kl.sum(-1).mean().item(), "top1": top1.item()}
