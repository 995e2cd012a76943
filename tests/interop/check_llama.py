"""llama.cpp runs our files: as we compute them in F16 and F32, and as close to F32 as ternary weights allow in the others."""
import itertools

import llama
import reference
from models import RUN_BY_LLAMA, TRAINED, Models, corpus, random_ids, text_ids
from report import Report
from ternary import ACTIVATIONS, compare, exact, f16
from ties import nearest

MAX = 5e-3  # F16 rounds weights and activations
TOP1, KL = 0.99, 1e-3  # another rounding of activations
EMULATION = 1e-4  # mean
N_GREEDY, PROMPT = 32, 64
KINDS = ["tq1_0", "tq2_0", "q2_0"]


def float_files(report: Report, models: Models) -> None:
    """F16 and F32."""
    report.note("*Dense*: the checkpoint before conversion, against `bitnet logits` of it. *Ternary*: the BitNet folder, whose file has "
                "codes times scale. Beside F16 and F32 llama.cpp leaves activations as they are, where BitNet rounds them to int8: so "
                "the numbers are compared with torch that does not round either (beside F16 tensors, an embedding's too, also with torch "
                "that rounds activations to f16, as llama.cpp does in some of its paths; the nearer counts), and with us only by KL. 4 × 24 random tokens; "
                "2 × 128 of text for the trained models.")
    for name, kind in itertools.product(RUN_BY_LLAMA, ["f16", "f32"]):
        ids = text_ids(seq=128) if name in TRAINED else random_ids()
        with report.part(f"{name}, dense, {kind}"):
            if file := models.exported_dense(name, f"gguf-{kind}"):
                ours = models.bitnet.logits(models.get(name).source, ids)
                report.within(f"{name}, dense, {kind}: llama.cpp against us", compare(llama.logits(file, ids), ours), max=MAX)
        with report.part(f"{name}, ternary, {kind}"):
            file = models.exported(name, f"gguf-{kind}")
            with llama.Engine(file, n_ctx=max(64, ids.shape[1])) as engine:
                found, runs_as = engine.logits(ids), engine.architecture
            report.holds(f"{name}, ternary, {kind}: architecture", runs_as == RUN_BY_LLAMA[name], RUN_BY_LLAMA[name], runs_as)
            types = {tensor: of for tensor, (of, *_) in models.tensors(file).items()}
            theirs = [reference.logits(reference.emulated(models.get(name).folder, exact, types, rounding), ids) for rounding in (exact, f16)]
            nearer = min((compare(found, logits) for logits in theirs), key=lambda off: off["max"])
            report.within(f"{name}, ternary, {kind}: llama.cpp against torch", nearer, max=MAX)
            ours = models.bitnet.logits(models.get(name).folder, ids)
            report.within(f"{name}, ternary, {kind}: llama.cpp against us", compare(found, ours), kl=KL)


def ternary_files(report: Report, models: Models) -> None:
    """TQ1_0, TQ2_0 and Q2_0 against F32 of the same weights, on trained models."""
    ids = text_ids()
    report.note(f"The repository's small model, converted by `bitnet convert`, then trained {models.steps} steps in transformers with its "
                f"online quantization on one text, until it knows it: flat logits, as of random weights, would let any rounding change the "
                f"most probable token. {ids.numel()} tokens of that text; greedy: {N_GREEDY} tokens after {PROMPT}, from three places in it.")
    prompts = [corpus()[start : start + PROMPT] for start in (0, 1000, 2000)]
    for name in TRAINED:
        with llama.Engine(models.exported(name, "gguf-f32"), n_ctx=512) as engine:
            expected, texts = engine.logits(ids), [engine.greedy(prompt, N_GREEDY) for prompt in prompts]
        for kind, flags in itertools.product(KINDS, [[], ["--scale", "block"]]):
            what = f"{name}, {kind}, scale per {'block' if flags else 'tensor'}"
            with report.part(what):
                with llama.Engine(models.exported(name, f"gguf-{kind}", *flags), n_ctx=512) as engine:
                    report.within(f"{what}: against F32", compare(engine.logits(ids), expected), top1=TOP1, kl=KL)
                    same = {f"prompt {i}": engine.greedy(prompt, N_GREEDY) == text for i, (prompt, text) in enumerate(zip(prompts, texts))}
                    report.equal(f"{what}: greedy texts equal to F32's", same)


def emulation(report: Report, models: Models) -> None:
    """Bare codes (d = 1) with the exact scale beside them, against torch that rounds activations as llama.cpp does."""
    report.note("Every model, random ones too; 4 × 24 random tokens. What a file holds in F16 is F16 in torch; llama.cpp rounds the "
                "inputs of such tensors to f16 in some of its paths and not in others, so torch takes the nearer way. *Ties*: "
                "activations within 2e-4 codes of a tie that torch was made to round as llama.cpp did (`tests/interop/ties.py`).")
    for name, kind in itertools.product(RUN_BY_LLAMA, KINDS):
        with report.part(f"{name}, {kind}"):
            file, rounding = models.exported(name, f"gguf-{kind}"), ACTIVATIONS[kind.upper()]
            types = {tensor: found for tensor, (found, *_) in models.tensors(file).items()}
            if not any(tensor.endswith(".scale") for tensor in types):
                continue  # no width that fills a block: floats alone, which the checks of F16 have seen
            found, runs = llama.logits(file, random_ids()), []
            for rounding_f16 in (exact, f16):
                model = reference.emulated(models.get(name).folder, rounding, types, rounding_f16)
                plain = reference.logits(model, random_ids())
                runs.append(((plain - found).abs().mean(-1).min().item(), model))  # of the tokens before any tie
            theirs, moved = nearest(min(runs, key=lambda run: run[0])[1], random_ids(), found)
            report.within(f"{name}, {kind}, {moved}: llama.cpp against torch", compare(found, theirs), mean=EMULATION)


def tokenizer(report: Report, models: Models) -> None:
    """The tokenizer that we wrote into the file, against tokenizer.json in the tokenizers package."""
    from tokenizers import Tokenizer
    name = next(iter(TRAINED))
    theirs = Tokenizer.from_file(str(models.get(name).folder / "tokenizer.json"))
    with llama.Engine(models.exported(name, "gguf-f16"), n_ctx=64) as engine:
        results = {repr(text): engine.tokenize(text) == theirs.encode(text, add_special_tokens=False).ids for text in TEXTS}
        end = theirs.token_to_id("<|endoftext|>")
        report.equal("texts with the tokens of tokenizer.json", results)
        report.holds("the token that ends a text", engine.model.token_eos() == end, str(end), str(engine.model.token_eos()))


TEXTS = ["Hello, world!", "The licensee may copy and distribute the Program.", "  two  spaces\n\ttab\n\n\n   ", "naïve café, 北京 🙂",
         "it's we'll I'm they've HE'S", "x = 3.14159 * (1 << 20) // 007", "a\r\nb\u00a0c\u2003d", "<|endoftext|>after<|endoftext|>",
         "camelCase snake_case SHOUT", "١٢٣ ½ ²", "", " ", "\n"]
