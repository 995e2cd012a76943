#!/usr/bin/env python3
"""Training steps of PyTorch at the shape of SmolLM2-135M, beside ours; `cargo xtask bench --torch` starts it.

usage: bench_torch.py --kind dense|naive [--repeat N] [--layers N] [--tokens N] [--threads N]

Random f32 weights, AdamW; forward, backward and update are timed, after a step that is not. Naive: every linear layer but the
head fake-quantizes its operands by straight-through estimation, as the field's training code does. Prints JSON.
"""
import argparse
import json
import time

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

EPS = 1e-5


class BitLinear(torch.nn.Linear):
    """absmean ternary weights and absmax int8 activations per token, with the identity as the gradient of both."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 / self.weight.abs().mean().clamp(min=EPS)
        w = (self.weight * scale).round().clamp(-1, 1) / scale
        t = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp(min=EPS)
        q = (x * t).round().clamp(-128, 127) / t
        return functional.linear(x + (q - x).detach(), self.weight + (w - self.weight).detach(), self.bias)


def model(kind: str, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, tie_word_embeddings=True, use_cache=False,
        initializer_range=1 / 24,
    )
    config.dtype = torch.float32
    llama = LlamaForCausalLM(config).train()
    if kind == "naive":
        for name, module in llama.named_modules():
            if type(module) is torch.nn.Linear and name != "lm_head":
                module.__class__ = BitLinear
    return llama


def peak_bytes() -> int | None:
    """The most memory of this process that was resident, as Linux counts it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["dense", "naive"], required=True)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    llama = model(args.kind, args.layers)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    tokens = torch.tensor([[i * i * 31 % 49152 for i in range(args.tokens)]])

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        loss = llama(input_ids=tokens, labels=tokens).loss
        forward = time.perf_counter() - start
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start, forward

    step()
    seconds, forward = zip(*[step() for _ in range(args.repeat)])
    print(json.dumps({"seconds": seconds, "forward_seconds": forward, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
