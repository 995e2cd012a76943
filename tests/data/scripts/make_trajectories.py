#!/usr/bin/env python3
"""How far equally valid training runs of tiny_llama part, measured in the form that docs/numerics.md defines: t = 127 /
max|x| divided, and Q = codes * scale for weights and activations alike. ref_bitlinear.py dequantizes by division
(codes / t), and torch computes `127.0 / tensor` as 127 * (1 / tensor): both differ by one unit in the last place,
which flips single codes. Each row of trajectories.json is the difference of a loss from PyTorch's run in our form.

usage: make_trajectories.py TINY_LLAMA_FOLDER
reads   data.safetensors, report.json (for its settings)
writes  trajectories.json
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import ref_bitlinear as ref


def codes_times_scale(x: torch.Tensor) -> torch.Tensor:
    absmax = x.abs().amax(dim=-1, keepdim=True).clamp(min=ref.EPS)
    t = torch.full_like(absmax, 127.0) / absmax
    return (x * t).round().clamp(-128, 127) * t.reciprocal()


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_file(folder / "data.safetensors")["ids"]
    settings = json.loads((folder / "report.json").read_text())["cfg"]
    reference_form = ref.act_quant
    report = {}
    for name, cfg in settings.items():
        ref.act_quant = codes_times_scale
        run = lambda **kw: ref.train(0, data, cfg, form="mul", **kw)[0][:, 0]
        losses = run()
        others = {"f64": run(dtype=torch.float64), "nudged by 1e-7": run(nudge=1e-7), "nudged by -1e-7": run(nudge=-1e-7)}
        ref.act_quant = reference_form
        others["in the form of ref_bitlinear.py"] = ref.train(0, data, cfg)[0][:, 0]
        report[name] = {key: [float(f"{v:.2e}") for v in (losses - o).abs()] for key, o in others.items()}
    (folder / "trajectories.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
