#!/usr/bin/env python3
"""Speed of `bitnet bench` and of llama.cpp's llama-bench on one file, in turns; `cargo xtask interop --bench` starts it.

usage: bench_llama.py --bitnet PROGRAM [--kernels PROGRAM] [--model FILE] [--rounds N] [--threads N] [--json FILE]

The file has the shape of SmolLM2-135M with widths that TQ2_0 divides: hidden 768, ffn 2048, 30 layers, 12 heads of 64, 4 kv heads,
vocab 49152; random trits in TQ2_0, and an F16 embedding that is the head too. Nothing else should run: a second process spoils
figures of two threads. Each round runs one after the other, so that a slow minute of the machine is one for both.
"""
import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

import ggml_matvec
import libggml
from models import SMALL
from report import cpu

D_MODEL, D_FF, LAYERS, HEADS, KV_HEADS, VOCAB = 768, 2048, 30, 12, 4, 49152
MATVEC = 4096
UNITS = {"ns": 1e-3, "µs": 1.0, "ms": 1e3, "s": 1e6}  # in microseconds


def make_model(file: Path) -> None:
    rng, head_dim = np.random.default_rng(0), D_MODEL // HEADS
    w = gguf.GGUFWriter(str(file), "llama", use_temp_file=True)
    w.add_context_length(2048)
    w.add_embedding_length(D_MODEL)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(D_FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(head_dim)
    w.add_vocab_size(VOCAB)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_TQ2_0)
    add_tokenizer(w)

    def ternary(name: str, d_output: int, d_input: int) -> None:
        values = rng.integers(-1, 2, (d_output, d_input)).astype(np.float32) * np.float32(np.float16(0.02))
        kind = gguf.GGMLQuantizationType.TQ2_0
        w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    w.add_tensor("token_embd.weight", (rng.standard_normal((VOCAB, D_MODEL), dtype=np.float32) * 0.02).astype(np.float16))
    w.add_tensor("output_norm.weight", np.ones(D_MODEL, np.float32))
    for i in range(LAYERS):
        ternary(f"blk.{i}.attn_q.weight", D_MODEL, D_MODEL)
        ternary(f"blk.{i}.attn_k.weight", KV_HEADS * head_dim, D_MODEL)
        ternary(f"blk.{i}.attn_v.weight", KV_HEADS * head_dim, D_MODEL)
        ternary(f"blk.{i}.attn_output.weight", D_MODEL, D_MODEL)
        ternary(f"blk.{i}.ffn_gate.weight", D_FF, D_MODEL)
        ternary(f"blk.{i}.ffn_up.weight", D_FF, D_MODEL)
        ternary(f"blk.{i}.ffn_down.weight", D_MODEL, D_FF)
        w.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(D_MODEL, np.float32))
        w.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(D_MODEL, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def add_tokenizer(w: gguf.GGUFWriter) -> None:
    """The small model's, with names for the tokens that it lacks: a file without one would not load in all engines."""
    tokenizer = json.loads((SMALL / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    n_more, kinds = VOCAB - len(tokens), gguf.TokenType
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens + [f"[UNUSED{i}]" for i in range(n_more)])
    w.add_token_types([kinds.CONTROL] + [kinds.NORMAL] * (len(tokens) - 1) + [kinds.UNUSED] * n_more)
    w.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]])
    w.add_eos_token_id(0)


def output(*words) -> str:
    return subprocess.run([str(word) for word in words], check=True, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout


def ours(args) -> dict[str, float]:
    found = json.loads(output(args.bitnet, "bench", args.model, "--threads", args.threads, "--prompt-tokens", args.prompt,
                              "--generate-tokens", args.generate, "--repeat", 1, "--json", "--quiet"))
    return {"prompt": found["prompt"]["tokens_per_second"], "generate": found["generate"]["tokens_per_second"]}


def theirs(args) -> dict[str, float]:
    tests = json.loads(output(libggml.folder() / "llama-bench", "-m", args.model, "-t", args.threads, "-p", args.prompt,
                              "-n", args.generate, "-r", 1, "-o", "json"))
    return {"prompt" if test["n_prompt"] else "generate": test["avg_ts"] for test in tests}


def our_matvec(kernels: Path) -> float:
    """The median of the fastest kernel of this processor in microseconds, from the lines that the benchmark prints."""
    lines = output(kernels, "--bench", f"matvec_{MATVEC}x{MATVEC}", "--skip", "groups").splitlines()
    medians = []
    for line in lines:
        columns = [column.strip() for column in line.split("│")]
        times = [re.fullmatch(r"([\d.]+) (ns|µs|ms|s)", column) for column in columns[-5:]]
        if len(columns) > 5 and times[1] and times[2]:  # .. fastest, slowest, median, mean, samples, iters
            medians.append(float(times[1][1]) * UNITS[times[1][2]])
    if not medians:
        raise ValueError("no median in what the kernels' benchmark printed:\n" + "\n".join(lines))
    return min(medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitnet", type=Path, required=True)
    parser.add_argument("--kernels", type=Path, help="the benchmark `kernels` of bitnet-cpu: measures matrix x vector too")
    parser.add_argument("--model", type=Path, help="another GGUF file than the one described above")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitnet-bench-") as work:
        if args.model is None:
            args.model = Path(work, "smollm2-shape-tq2_0.gguf")
            make_model(args.model)
        run(args)


def run(args) -> None:
    rounds = {"prompt": [], "generate": [], f"matvec {MATVEC}x{MATVEC}": []}  # pairs: ours, theirs
    product = ggml_matvec.Product("TQ2_0", MATVEC, MATVEC) if args.kernels else None
    for i in range(args.rounds):
        sides = {side.__name__: side(args) for side in ([ours, theirs] if i % 2 else [theirs, ours])}
        for what in ("prompt", "generate"):
            rounds[what].append((sides["ours"][what], sides["theirs"][what]))
        if product:
            theirs_us = statistics.median(product.microseconds() for _ in range(500))
            rounds[f"matvec {MATVEC}x{MATVEC}"].append((our_matvec(args.kernels), theirs_us))
        print(f"round {i + 1}:", ", ".join(f"{what} {pairs[-1][0]:.1f} | {pairs[-1][1]:.1f}" for what, pairs in rounds.items() if pairs),
              file=sys.stderr, flush=True)

    print(f"{cpu()}; llama.cpp's ggml {libggml.version()}; medians of {args.rounds} rounds\n")
    print("| what | threads | bitnet | llama.cpp | bitnet is faster by | in single rounds |\n|---|---|---|---|---|---|")
    report = {}
    for what, pairs in rounds.items():
        if not pairs:
            continue
        is_time = what.startswith("matvec")
        threads, unit, tokens = (1, "µs", "") if is_time else (args.threads, "tokens/s", f" {getattr(args, what)}")
        ratios = [b / a if is_time else a / b for a, b in pairs]
        a, b = (statistics.median(column) for column in zip(*pairs))
        ratio = b / a if is_time else a / b
        print(f"| {what}{tokens} | {threads} | {a:.1f} {unit} | {b:.1f} {unit} | {ratio:.2f}× | {min(ratios):.2f} to {max(ratios):.2f}× |")
        report[what] = {"threads": threads, "unit": unit, "bitnet": a, "llama_cpp": b, "ratio": ratio, "rounds": pairs}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
