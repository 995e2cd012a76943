#!/usr/bin/env python3
"""Copies what ref_bitlinear.py wrote to ../bitlinear, without what no test reads. Needs Python alone.

usage: trim_bitlinear.py FOLDER      (FOLDER: the --out of ref_bitlinear.py)
Left out: the final weights of the trajectories (`final.*`: after 20 steps two equally valid runs have parted) and
quant_edges.json (counts about the reference itself).
"""
import json
import shutil
import struct
import sys
from pathlib import Path

COPIED = [
    "cases.json", "cases.safetensors", "quant_edges.safetensors", "tiny_llama/config.json", "tiny_llama/report.json",
    "tiny_llama/data.safetensors", "tiny_llama/model.safetensors", "tiny_llama/step_ramp_7.safetensors",
    "tiny_llama/ref_lambda_0.0.safetensors", "tiny_llama/ref_lambda_0.3.safetensors",
    "tiny_llama/ref_lambda_1.0.safetensors",
]
TRIMMED = [f"tiny_llama/traj_{name}.safetensors" for name in ("dense", "const", "ramp")]


def trim(source: Path, target: Path) -> None:
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    kept, parts, offset = {}, [], 0
    for name, entry in header.items():
        if name == "__metadata__" or name.startswith("final."):
            continue
        begin, end = entry["data_offsets"]
        kept[name] = entry | {"data_offsets": [offset, offset + end - begin]}
        parts.append(body[begin:end])
        offset += end - begin
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def main() -> None:
    source, target = Path(sys.argv[1]), Path(__file__).parent.parent / "bitlinear"
    (target / "tiny_llama").mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(source / name, target / name)
    for name in TRIMMED:
        trim(source / name, target / name)


if __name__ == "__main__":
    main()
