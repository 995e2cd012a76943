"""Peak memory of exports: a model is read one tensor at a time."""
import json
import shutil

import torch
from safetensors.torch import save_file

from models import ONLINE, SMALL, Models
from report import Report

VOCAB, D_MODEL, D_FF, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 128256, 2048, 8192, 16, 32, 8, 64
LARGEST = 2 * VOCAB * D_MODEL  # bytes of the embedding
PEAK = 2 * LARGEST + 200 * 10**6
FORMS = ["gguf-tq2_0", "gguf-f16", "hf-bitlinear"]


def run(report: Report, models: Models) -> None:
    report.note(f"Random bf16 weights at the shape of Llama-3.2-1B ({LAYERS} layers, hidden {D_MODEL}, ffn {D_FF}, vocab {VOCAB}); its "
                f"largest tensor, the embedding, has {LARGEST / 1e6:.0f} MB. Resident memory at most, mapped files counted in.")
    folder = make(models)
    for form in FORMS:
        target = models.work / f"one_billion-{form}"
        with report.part(form):
            peak = models.bitnet.peak_memory("export", folder, target, "--format", form)
            report.holds(f"{form}: peak memory", peak <= PEAK, f"at most {PEAK / 1e6:.0f} MB", f"{peak / 1e6:.0f} MB")
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
    shutil.rmtree(folder)


def make(models: Models):
    folder = models.work / "one_billion"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": D_MODEL,
              "intermediate_size": D_FF, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
              "head_dim": HEAD_DIM, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
              "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "dtype": "bfloat16", "quantization_config": ONLINE}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(SMALL / "tokenizer.json", folder)
    d_query, d_key = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"self_attn.q_proj": (d_query, D_MODEL), "self_attn.k_proj": (d_key, D_MODEL), "self_attn.v_proj": (d_key, D_MODEL),
              "self_attn.o_proj": (D_MODEL, d_query), "mlp.gate_proj": (D_FF, D_MODEL), "mlp.up_proj": (D_FF, D_MODEL),
              "mlp.down_proj": (D_MODEL, D_FF)}
    random = torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    state = {"model.embed_tokens.weight": random, "model.norm.weight": torch.ones(D_MODEL).bfloat16()}
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            state[f"model.layers.{layer}.{name}.weight"] = random.flatten()[: rows * columns].reshape(rows, columns).clone()
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{layer}.{name}.weight"] = torch.ones(D_MODEL).bfloat16()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
