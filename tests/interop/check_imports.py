"""What we wrote and read back ourselves holds the codes and scales of the latent model."""
import itertools

import torch

import reference
from check_gguf import F16_STEP
from models import ALL, RUN_BY_LLAMA, Models, random_ids
from report import Report
from ternary import compare, exact, projections

HF = ["hf-bitlinear", "hf-autobitlinear"]
GGUF = ["gguf-tq1_0", "gguf-tq2_0", "gguf-q2_0"]
FLOAT = ["gguf-f16", "gguf-f32"]
MEAN = 1e-4
NARROW, FULL_BLOCKS = "llama_192", ["gguf-tq1_0", "gguf-tq2_0", "i2_s-x86", "i2_s-arm"]  # no width that fills a block: floats alone
I2_S = ["i2_s-x86", "i2_s-arm"]  # the only file that a ReLU² model fits into; no Qwen and no Gemma fits
IN_BITNET_CPP = [name for name in ALL if not name.startswith(("qwen", "gemma"))]


def run(report: Report, models: Models) -> None:
    report.note("Each file or folder is the source of a second `bitnet export`, to `hf-autobitlinear`, which torch unpacks. "
                "Scales: equal to 1 part in 10⁶, or to f16 where the first file holds them in it. A file of floats alone is what "
                "llama.cpp computes with it, without rounding of activations: its logits are compared instead.")
    for name, form in itertools.product(RUN_BY_LLAMA, FLOAT):
        with report.part(f"{name}, {form}"):
            file = models.exported(name, form)
            types = {tensor: of for tensor, (of, *_) in models.tensors(file).items()}
            theirs = reference.logits(reference.emulated(models.get(name).folder, exact, types, gelu_table=False), random_ids())
            report.within(f"{name}, {form}: our logits of the file against torch", compare(models.bitnet.logits(file, random_ids()), theirs), mean=MEAN)
    for form, names in [*itertools.product(HF, [ALL]), *itertools.product(GGUF, [list(RUN_BY_LLAMA)]), *itertools.product(I2_S, [IN_BITNET_CPP])]:
        results, step = {}, F16_STEP if form in GGUF else 1e-6
        for name in names:
            if name == NARROW and form in FULL_BLOCKS:
                continue
            with report.part(f"{name}, {form}"):
                file = models.exported(name, form)
                back = file.with_name(f"{file.name}-back")
                models.bitnet.export(file, back, "hf-autobitlinear")
                found = projections(back)
                for layer, ternary in projections(models.get(name).folder).items():
                    results[f"{name} {layer}"] = torch.equal(found[layer].codes, ternary.codes) \
                        and abs(found[layer].scale / ternary.scale - 1) <= step
        report.equal(f"{form}: projections with their codes and scale", results)
