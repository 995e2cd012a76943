"""Models in transformers: as it runs a folder, and with the arithmetic of another engine in place of its linear maps."""
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ternary import PROJECTIONS, Emulated, exact, f16, projections, tensors


def load(folder: Path):
    """The folder in transformers, in f32, with every tensor of the file used and none missing."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    for tensor in [*model.parameters(), *model.buffers()]:  # transformers leaves bf16 tensors of a quantized folder as they are
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if not set(info["missing_keys"]) <= tied or info["unexpected_keys"]:
        raise ValueError(f"{folder.name}: missing {info['missing_keys']}, unexpected {info['unexpected_keys']}")
    return model.eval()


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits.float()


def dense_twin(folder: Path):
    """The architecture of a latent folder without quantization, holding its latent weights."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as work:
        Path(work, "config.json").write_text(json.dumps(config))
        save_file(tensors(folder), Path(work, "model.safetensors"), metadata={"format": "pt"})
        return load(Path(work))


class GeluTable(torch.nn.Module):
    """llama.cpp's GELU: a table of f16 for f16, the identity from 10 on and nothing up to -10."""

    def forward(self, x):
        table = f16(torch.nn.functional.gelu(f16(x), approximate="tanh"))
        return torch.where(x >= 10, x, torch.where(x <= -10, 0, table))


def emulated(folder: Path, rounding, types: dict[str, str] | None = None, rounding_f16=exact, gelu_table=True):
    """A latent folder's model with ternary weights, the inputs of its projections rounded by `rounding`.

    `types` (GGUF tensor name -> type) are those of a file: what is F16 there, embedding and head included, has its values
    rounded to f16, and its inputs by `rounding_f16` instead; `gelu_table`: and GELU is llama.cpp's."""
    model, types = dense_twin(folder), types or {}
    for layer, ternary in projections(folder).items():
        number, name = layer.split(".")[2], ".".join(layer.split(".")[3:])
        linear = model.get_submodule(layer)
        slot = f"blk.{number}.{PROJECTIONS[name]}"
        if types.get(f"{slot}.weight") == "F16":
            replaced = Emulated(f16(ternary.codes * ternary.scale), 1.0, linear.bias, rounding_f16)
        elif types.get(f"{slot}.weight", "F32") != "F32" and f"{slot}.scale" not in types:  # in its blocks
            replaced = Emulated(ternary.codes, f16(torch.tensor(ternary.scale)).item(), linear.bias, rounding)
        else:
            replaced = Emulated(ternary.codes, ternary.scale, linear.bias, rounding)
        model.set_submodule(layer, replaced)
    for module in model.modules():
        if type(getattr(module, "act_fn", None)).__name__ == "GELUTanh" and types and gelu_table:
            module.act_fn = GeluTable()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings().weight.data
    if types.get("token_embd.weight") == "F16":
        embedding.weight = torch.nn.Parameter(f16(embedding.weight.data))
    if types.get("output.weight", types.get("token_embd.weight")) == "F16":
        model.set_output_embeddings(Emulated(f16(head), 1.0, None, rounding_f16))
    else:
        model.set_output_embeddings(Emulated(head, 1.0, None, exact))
    return model
