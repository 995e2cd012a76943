"""transformers loads our packed and online folders and computes our logits."""
import itertools
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

import reference
from models import ALL, REPOSITORY, Models, random_ids
from report import Report
from ternary import compare, projections
from ties import nearest

MEAN, MAX = 1e-4, 2e-2
KL = 1e-3  # ties, which nobody looks for here
FORMS = ["hf-bitlinear", "hf-autobitlinear", "hf-online"]
GOLDEN = {"bitnet_online": "bitnet_online", "bitnet_online_bf16": "bitnet_online_bf16", "llama_online": "llama_tied"}  # and whose weights


def run(report: Report, models: Models) -> None:
    report.note("`TORCHDYNAMO_DISABLE=1`, eager attention, f32, 4 × 24 random tokens. *Ties*: activations within 2e-4 codes of a "
                "tie that transformers was made to round as we did (`tests/interop/ties.py`); without that, each moves the "
                "logits of its row by up to 1e-1.")
    for form in FORMS:
        results = {}
        for name in ALL:
            with report.part(f"{name}, {form}"):
                results |= {f"{name} {layer}": held for layer, held in same_codes(models.get(name).folder, models.exported(name, form)).items()}
        report.equal(f"{form}, read by torch: projections with our codes and scale", results)
    for name, form in itertools.product(ALL, FORMS):
        with report.part(f"{name}, {form}"):
            latent, folder = models.get(name).folder, models.exported(name, form)
            ours = models.bitnet.logits(folder, random_ids())
            check(report, f"{name}, {form}", folder, ours, random_ids())
            off = compare(ours, models.bitnet.logits(latent, random_ids()))
            report.within(f"{name}, {form}, read back by us: logits against the latent folder's", off, kl=KL)
    for name, weights in GOLDEN.items():
        with report.part(f"golden {name}"):
            golden(report, models, name, weights)


def same_codes(latent: Path, exported: Path) -> dict[str, bool]:
    found = projections(exported)
    return {layer: torch.equal(found[layer].codes, ternary.codes) and abs(found[layer].scale / ternary.scale - 1) < 1e-6
            for layer, ternary in projections(latent).items()}


def check(report: Report, what: str, folder: Path, ours: torch.Tensor, ids: torch.Tensor) -> None:
    """Our logits of `folder` against transformers', which must hold each projection, and nothing else, as a BitLinear."""
    model = reference.load(folder)
    found = {name for name, module in model.named_modules() if "BitLinear" in type(module).__name__}
    if found != set(projections(folder)):
        report.holds(f"{what}: linear maps that transformers holds as BitLinear", False, "the projections", str(sorted(found)))
    theirs, moved = nearest(model, ids, ours)
    report.within(f"{what}, {type(model).__name__}, {moved}: our logits against transformers'", compare(ours, theirs), mean=MEAN, max=MAX)


def golden(report: Report, models: Models, name: str, weights: str) -> None:
    """A fixture of tests/data/hf, which transformers made: our logits against its own, then each export of it."""
    fixtures = REPOSITORY / "tests/data/hf"
    folder = models.work / "models" / f"golden_{name}"
    folder.mkdir(parents=True)
    shutil.copy(fixtures / name / "config.json", folder)
    shutil.copy(fixtures / weights / "model.safetensors", folder)
    reference_file = load_file(fixtures / name / "ref.safetensors")
    ids, wanted = reference_file["input_ids"], reference_file["logits"]
    report.within(f"golden {name}: transformers' logits against the fixture's", compare(reference.logits(reference.load(folder), ids), wanted), mean=MEAN, max=MAX)
    check(report, f"golden {name}", folder, models.bitnet.logits(folder, ids), ids)
    for form in FORMS:
        target = models.work / "exports" / f"golden_{name}-{form}"
        models.bitnet.export(folder, target, form)
        check(report, f"golden {name}, {form}", target, models.bitnet.logits(target, ids), ids)
