"""Trains a BitNet folder in transformers: its online quantization passes gradients straight through."""
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

BATCH, SEQ, RATE = 8, 128, 1.5e-3


def train(source: Path, target: Path, corpus: list[int], steps: int) -> None:
    """Writes `target`: the folder `source` after `steps` AdamW steps on `corpus`."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").train()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    tokens, generator = torch.tensor(corpus), torch.Generator().manual_seed(3)
    for step in range(steps):
        starts = torch.randint(0, len(corpus) - SEQ, (BATCH,), generator=generator).tolist()
        ids = torch.stack([tokens[start : start + SEQ] for start in starts])
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"    {source.name}: step {step}, loss {loss.item():.3f}", flush=True)

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*", "report.json"))
    tied = model.config.tie_word_embeddings
    state = {name: p.detach().contiguous() for name, p in model.named_parameters() if not (tied and name == "lm_head.weight")}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2))
