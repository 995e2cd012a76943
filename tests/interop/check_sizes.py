"""How much smaller than f32 the linear weights are on disk."""
from models import Models
from report import Report
from ternary import tensors

EXPECTED = {"hf-bitlinear": 16.0, "hf-autobitlinear": 16.0, "gguf-tq1_0": 18.96, "gguf-tq2_0": 15.52, "gguf-q2_0": 14.22}
NAME = "llama_subln"


def run(report: Report, models: Models) -> None:
    report.note(f"The bytes of the seven projections of every layer of `{NAME}` with their scales, read from the file, against 4 bytes a weight.")
    latent = tensors(models.get(NAME).folder)
    n_weights = sum(tensor.numel() for name, tensor in latent.items() if name.endswith("_proj.weight"))
    for form, expected in EXPECTED.items():
        file = models.exported(NAME, form)
        if form.startswith("hf-"):
            n_bytes = sum(t.numel() * t.element_size() for name, t in tensors(file).items() if "_proj.weight" in name)
        else:
            n_bytes = sum(size for name, (_, size, _) in models.tensors(file).items()
                          if name.startswith("blk.") and "norm" not in name)
        ratio = 4 * n_weights / n_bytes
        report.holds(f"{form}: f32 bytes per byte", round(ratio / expected, 3) == 1, f"{expected} ± 0.05 %", f"{ratio:.4f}")
