"""What we wrote and read back ourselves holds the codes and scales of the latent model."""
import itertools

import torch

from check_gguf import F16_STEP
from models import ALL, RUN_BY_LLAMA, Models
from report import Report
from ternary import projections

HF = ["hf-bitlinear", "hf-autobitlinear"]
GGUF = ["gguf-tq1_0", "gguf-tq2_0", "gguf-q2_0", "gguf-f16", "gguf-f32"]
I2_S = ["i2_s-x86", "i2_s-arm"]  # the only file that a ReLU² model fits into; no Qwen and no Gemma fits
IN_BITNET_CPP = [name for name in ALL if not name.startswith(("qwen", "gemma"))]


def run(report: Report, models: Models) -> None:
    report.note("Each file or folder is the source of a second `bitnet export`, to `hf-autobitlinear`, which torch unpacks. "
                "Scales: equal to 1 part in 10⁶, or to f16 where the first file holds them in it.")
    for form, names in [*itertools.product(HF, [ALL]), *itertools.product(GGUF, [list(RUN_BY_LLAMA)]), *itertools.product(I2_S, [IN_BITNET_CPP])]:
        results, step = {}, F16_STEP if form in GGUF else 1e-6
        for name in names:
            with report.part(f"{name}, {form}"):
                file = models.exported(name, form)
                back = file.with_name(f"{file.name}-back")
                models.bitnet.export(file, back, "hf-autobitlinear")
                found = projections(back)
                for layer, ternary in projections(models.get(name).folder).items():
                    results[f"{name} {layer}"] = torch.equal(found[layer].codes, ternary.codes) \
                        and abs(found[layer].scale / ternary.scale - 1) <= step
        report.equal(f"{form}: projections with their codes and scale", results)
