#!/usr/bin/env python3
"""Runs the checks against other engines and writes docs/interop.md; `cargo xtask interop` starts it.

usage: run.py --bitnet PROGRAM [--only CHECK]... [--transcript FILE] [--work FOLDER] [--steps N]

Exit status 1 where a check failed. The page is written only by a whole run, failed or not.
"""
import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled, transformers' own logits move by up to 4e-2
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

import check_gguf
import check_imports
import check_llama
import check_memory
import check_refusals
import check_sizes
import check_tokenizers
import check_transformers
import libggml
from command import Bitnet
from models import REPOSITORY, Models
from report import Report

CHECKS = {
    "gguf": ("Files and codes", check_gguf.run),
    "transformers": ("transformers", check_transformers.run),
    "llama-float": ("llama.cpp, F16 and F32", check_llama.float_files),
    "llama-ternary": ("llama.cpp, ternary types", check_llama.ternary_files),
    "emulation": ("llama.cpp's arithmetic, emulated", check_llama.emulation),
    "tokenizer": ("The tokenizer in the file", check_llama.tokenizer),
    "tokenizers": ("Tokenizers of every kind", check_tokenizers.run),
    "imports": ("Read back by us", check_imports.run),
    "sizes": ("Sizes on disk", check_sizes.run),
    "memory": ("Memory", check_memory.run),
    "refusals": ("Refused", check_refusals.run),
}
INTRODUCTION = """# Interoperation

What other engines make of the files that `bitnet export` writes: the transcript of

    cargo xtask interop

which builds the command, makes models with random weights and trains two small ones, exports them, and compares. The
scripts are in `tests/interop`; this page is written by them."""


def versions(bitnet: Bitnet) -> list[str]:
    packages = ["torch", "transformers", "tokenizers", "safetensors", "gguf", "llama-cpp-python"]
    found = {name: importlib.metadata.version(name) for name in packages}
    found["llama.cpp's ggml"] = libggml.version()
    found["Python"] = platform.python_version()
    found["bitnet"] = bitnet.run("--version").strip().removeprefix("bitnet ")
    bitnet.lines.clear()
    return [f"| {name} | {version} |" for name, version in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitnet", type=Path, required=True, help="the command's program")
    parser.add_argument("--only", action="append", choices=CHECKS, metavar="CHECK", help=f"only this one; repeatable: {', '.join(CHECKS)}")
    parser.add_argument("--transcript", type=Path, help="the page to write after a whole run")
    parser.add_argument("--work", type=Path, help="keep models and exports in this folder, and use what was trained there before")
    parser.add_argument("--steps", type=int, default=120, help="training steps of the two small models")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    with tempfile.TemporaryDirectory(prefix="bitnet-interop-") as scratch:
        work = args.work or Path(scratch)
        work.mkdir(exist_ok=True)
        bitnet, report = Bitnet(args.bitnet, work), Report()
        table = versions(bitnet)
        models = Models(bitnet, work.resolve(), args.steps)
        for name, (subject, check) in CHECKS.items():
            if not args.only or name in args.only:
                report.run(subject, lambda: check(report, models))
        page = report.page(table, bitnet.lines, INTRODUCTION).replace(f"{REPOSITORY}/", "").replace(str(work.resolve()), "WORK")
        if args.transcript and not args.only:
            written = args.transcript.with_suffix(".partial")
            written.write_text(page)
            written.replace(args.transcript)
    failed = report.failed()
    print(f"\n{len(report.rows) - len(failed)} of {len(report.rows)} checks held", "" if not failed else f"; failed: {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
