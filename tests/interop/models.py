"""The models that the checks use: checkpoints that transformers makes, converted and exported by the `bitnet` command."""
import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import libggml
from command import Bitnet
from train import train

REPOSITORY = Path(__file__).parents[2]
SMALL = REPOSITORY / "assets/small-model"
VOCAB = 512  # of the small model's tokenizer, which every checkpoint here carries

BASE = dict(vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=0,
            pad_token_id=None, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online", "modules_to_not_convert": None}

# name: model_type, what differs from BASE, where SubLN goes (None: a BitNet checkpoint already), and llama.cpp's architecture
RANDOM = {
    "llama_subln": ("llama", dict(num_hidden_layers=4), "output", "bitnet"),
    "llama_plain": ("llama", dict(num_hidden_layers=4), "none", "llama"),
    "llama_untied": ("llama", dict(tie_word_embeddings=False), "none", "llama"),
    "llama_gqa": ("llama", dict(num_attention_heads=8, num_key_value_heads=2, head_dim=64), "none", "llama"),
    "llama_bias": ("llama", dict(attention_bias=True, mlp_bias=True), "none", "llama"),
    "llama3_rope": ("llama", dict(rope_parameters=LLAMA3), "none", "llama"),
    "llama_192": ("llama", dict(hidden_size=192, intermediate_size=320, num_attention_heads=3, num_key_value_heads=1), "output", "bitnet"),
    "qwen2": ("qwen2", {}, "none", "qwen2"),
    "qwen3": ("qwen3", dict(head_dim=128), "none", "qwen3"),
    "mistral": ("mistral", dict(sliding_window=None, tie_word_embeddings=False), "none", "llama"),
    "gemma": ("gemma", dict(head_dim=64), "none", "gemma"),
    "gemma2": ("gemma2", dict(head_dim=64, query_pre_attn_scalar=64, sliding_window=16), "none", "gemma2"),
    "bitnet_silu": ("bitnet", dict(hidden_act="silu"), None, "bitnet"),
    "bitnet_relu2": ("bitnet", dict(hidden_act="relu2"), None, None),
}
TRAINED = {"small_subln": ("output", "bitnet"), "small_plain": ("none", "llama")}
ALL = [*TRAINED, *RANDOM]
RUN_BY_LLAMA = {name: kind[-1] for name, kind in [*TRAINED.items(), *RANDOM.items()] if kind[-1]}


@dataclass
class Model:
    name: str
    source: Path  # the checkpoint as it was made
    folder: Path  # the BitNet folder with latent weights: what is exported
    architecture: str | None  # llama.cpp's, None where no architecture of it runs the model


class Models:
    """Makes each model and each export when a check first asks for it."""

    def __init__(self, bitnet: Bitnet, work: Path, steps: int):
        self.bitnet, self.work, self.steps = bitnet, work, steps
        for folder in ("sources", "models", "exports"):  # made anew; what was trained is used again
            shutil.rmtree(work / folder, ignore_errors=True)
            (work / folder).mkdir()
        self.made: dict[str, Model] = {}

    def get(self, name: str) -> Model:
        if name not in self.made:
            self.made[name] = self.trained(name) if name in TRAINED else self.random(name)
        return self.made[name]

    def exported(self, name: str, form: str, *flags: str) -> Path:
        """The model in the format `form` of `bitnet export`: a file or a folder."""
        target = self.work / "exports" / "-".join([name, form, *(flag.strip("-") for flag in flags)])
        if not form.startswith("hf-"):
            target = target.with_name(target.name + ".gguf")
        if not target.exists():
            self.bitnet.export(self.get(name).folder, target, form, *flags)
        return target

    def exported_dense(self, name: str, form: str) -> Path | None:
        """The checkpoint before conversion in the format `form`; None where there is no dense one."""
        source = self.get(name).source
        if source == self.get(name).folder:
            return None
        target = self.work / "exports" / f"{source.name}-dense-{form}.gguf"
        if not target.exists():
            self.bitnet.export(source, target, form)
        return target

    @functools.cache
    def tensors(self, file: Path) -> dict:
        """The tensors of a GGUF file: `libggml.read`."""
        return libggml.read(file)

    def random(self, name: str) -> Model:
        kind, changes, sub_norm, architecture = RANDOM[name]
        source, folder = self.work / "sources" / name, self.work / "models" / name
        make_checkpoint(source, kind, changes, seed=1 + list(RANDOM).index(name))
        if sub_norm is None:
            return Model(name, source, source, architecture)
        return Model(name, source, self.bitnet.convert(source, folder, sub_norm), architecture)

    def trained(self, name: str) -> Model:
        """The repository's small model, converted by us, then trained by transformers for `steps` steps."""
        sub_norm, architecture = TRAINED[name]
        converted = self.bitnet.convert(SMALL, self.work / "models" / f"{name}_untrained", sub_norm)
        folder = self.work / f"trained-{self.steps}" / name
        if not folder.exists():
            train(converted, folder, corpus(), self.steps)
        return Model(name, SMALL, folder, architecture)


def make_checkpoint(folder: Path, kind: str, changes: dict, seed: int) -> None:
    """A checkpoint with random weights of a size at which every parameter moves the logits, and the small tokenizer.

    The values are bf16 ones, as those of published checkpoints, which f16 mostly holds exactly."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**BASE, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.1)
            elif p.ndim == 1:  # Gemma stores what a gain is more than 1
                p.normal_(0 if kind.startswith("gemma") else 1, 0.1)
            else:  # a large embedding makes a tied model repeat its input
                p.normal_(0, 0.1 if "embed" in name else p.shape[1] ** -0.5)
            p.copy_(p.bfloat16())
    model.save_pretrained(folder)
    shutil.copy(SMALL / "tokenizer.json", folder)
    if kind == "bitnet":  # latent weights, quantized on the fly
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": ONLINE}, indent=2))


def corpus() -> list[int]:
    """What the trained models learn by heart: the beginning of the repository's README as tokens of the small model."""
    from tokenizers import Tokenizer
    text = (REPOSITORY / "README.md").read_text()
    return Tokenizer.from_file(str(SMALL / "tokenizer.json")).encode(text).ids[:3072]


def random_ids() -> torch.Tensor:
    """Token ids int64 [4, 24]."""
    return torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(7))


def text_ids(batch: int = 2, seq: int = 384) -> torch.Tensor:
    """Text that they know as token ids int64 [batch, seq]."""
    return torch.tensor(corpus()[: batch * seq]).reshape(batch, seq)
