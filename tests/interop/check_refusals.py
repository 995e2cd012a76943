"""What cannot be exported is refused with the reason, and nothing is written."""
from models import LLAMA3, SMALL, Models, make_checkpoint
from report import Report


def run(report: Report, models: Models) -> None:
    sources = models.work / "sources"
    make_checkpoint(sources / "llama3_subln", "llama", dict(rope_parameters=LLAMA3), seed=92)
    converted = models.bitnet.convert(sources / "llama3_subln", models.work / "models/llama3_subln", "output")
    relu2, untied = models.get("bitnet_relu2").folder, models.work / "models/untied_subln"
    models.bitnet.convert(models.get("llama_untied").source, untied, "output")
    cases = [  # what, folder, format, a word that the reason must have
        ("ReLU², which llama.cpp would compute as SiLU", relu2, "gguf-tq2_0", "relu2"),
        ("ReLU² in F32", relu2, "gguf-f32", "relu2"),
        ("llama3 RoPE scaling with SubLN", converted, "gguf-tq2_0", "rope"),
        ("an untied head with SubLN", untied, "gguf-tq2_0", "head"),
        ("a dense model to ternary blocks", SMALL, "gguf-tq2_0", "dense"),
        ("a dense model to packed weights", SMALL, "hf-bitlinear", "dense"),
        ("an unknown format", SMALL, "gguf-q9_9", "q9_9"),
    ]
    for what, folder, form, word in cases:
        target = models.work / "refused"
        message = models.bitnet.refused("export", folder, target, "--format", form)
        held = message is not None and word.lower() in message.lower() and not target.exists()
        report.holds(what, held, f"refused, naming “{word}”, nothing written", message or "not refused")
    target = models.exported("llama_subln", "gguf-tq2_0")
    before = target.read_bytes()
    message = models.bitnet.refused("export", models.get("llama_subln").folder, target, "--format", "gguf-tq2_0")
    report.holds("a target that exists", message is not None and target.read_bytes() == before, "refused, the file as it was", message or "not refused")
