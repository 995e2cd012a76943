#!/usr/bin/env python3
"""The training trajectories of tiny_llama in the form that docs/numerics.md defines: Q = codes * scale for weights
and activations alike. ref_bitlinear.py dequantizes by division (codes / t), which differs by one unit in the last
place; at lambda = 1 an activation of the very first batch lies 1e-6 from a tie (near_ties.py), and the two forms fall
on different sides of it. So the losses to compare with are those of PyTorch in our own form, and the division form
is one of the equally valid runs that measure how far apart such runs drift.

usage: make_trajectories.py TINY_LLAMA_FOLDER
reads   data.safetensors, report.json (for its settings)
writes  traj_{const,dense,ramp}.safetensors (loss, grad_norm, lambda, lr) and trajectories.json (the differences)
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import ref_bitlinear as ref


def codes_times_scale(x: torch.Tensor) -> torch.Tensor:
    q, t = ref.act_quant_int(x)
    return q * (1.0 / t)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_file(folder / "data.safetensors")["ids"]
    settings = json.loads((folder / "report.json").read_text())["cfg"]
    division = ref.act_quant
    report = {}
    for name, cfg in settings.items():
        ref.act_quant = codes_times_scale
        run = lambda **kw: ref.train(0, data, cfg, form="mul", **kw)[0]
        rows = run()
        others = {"f64": run(dtype=torch.float64), "nudged by 1e-7": run(nudge=1e-7), "nudged by -1e-7": run(nudge=-1e-7)}
        ref.act_quant = division
        others["dequantized by division"] = ref.train(0, data, cfg)[0]
        columns = {key: rows[:, i].float().contiguous() for i, key in enumerate(["loss", "grad_norm", "lambda", "lr"])}
        save_file(columns, folder / f"traj_{name}.safetensors")
        differences = {key: [float(f"{v:.2e}") for v in (rows[:, 0] - o[:, 0]).abs()] for key, o in others.items()}
        report[name] = differences
        print(name, {key: [f"{v:.1e}" for v in row[:5]] for key, row in differences.items()})
    (folder / "trajectories.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
