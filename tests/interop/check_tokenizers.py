"""Tokenizers of every kind that we write into GGUF files: llama.cpp gives the tokens of tokenizer.json.

Each is trained here on a few texts, with the splitting rules that well-known models have in their tokenizer.json."""
import json
import shutil

from llama_cpp import Llama
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from models import RANDOM, REPOSITORY, VOCAB, Models
from report import Report

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
CHINESE = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|""" + SPACES)


def splits(*regexes: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*(pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes), BYTES])


# name in the file: the rules, and whether a word that is a token is not merged
KINDS = {
    "gpt-2": (GPT2, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), False),
    "llama-bpe": (splits(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"), True),
    "qwen2": (splits(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"), False),
    "deepseek-v3": (splits(r"\p{N}{1,3}", CHINESE, DEEPSEEK3), False),
    "tekken": (splits(rf"{CASED[0]}|{CASED[1]}|\p{{N}}|{SYMBOLS}|{SPACES}"), True),
    "gpt-4o": (splits(rf"{CASED[0]}{CONTRACTIONS}?|{CASED[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{SYMBOLS}|{SPACES}"), False),
}
# llama.cpp's own expressions for these two know no combining marks, and upper from lower case in ASCII only
APPROXIMATE = {"tekken", "gpt-4o"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ ✅ 🦙🦙 3 33 333 3333 33333 3.3 3..3 3...3 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not a'lL",
    "Hello, World!  two spaces\r\n\tline  ", " leading", "ÉCOLE École ÑañÑ Straße", "12³ ½ Ⅷ", "a_b(c)=d[e]; // x != y\n\n\n  end ",
    "日本語のテキスト한국어 텍스트", "<|endoftext|>mid<|im_start|> x", "", " ", "'S don't WE'LL", "====", "aaaaaaaa", "</p><p>",
]
MARKS = "កាន់តែពិសេសអាច हिन्दी"  # words with combining marks


def run(report: Report, found: Models) -> None:
    """Each kind, with the texts above and the beginning of the README."""
    report.note("Tokenizers trained here, with the splitting rules of well-known models. For tekken and gpt-4o only ASCII "
                "texts: in other scripts llama.cpp's expressions for them differ from the tokenizers' own.")
    texts = [*TEXTS, *(REPOSITORY / "README.md").read_text().split("\n\n")[:40]]
    for name, (rules, ignore_merges) in KINDS.items():
        with report.part(name):
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer, tokenizer.decoder = rules, decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=VOCAB - 8, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
            tokenizer.train_from_iterator([*texts, *TEXTS * 40], trainer)
            tokenizer.add_tokens([AddedToken("</p>", special=False)])
            some = [text for text in texts if text.isascii()] if name in APPROXIMATE else [*texts, MARKS]
            compare(report, found, name, tokenizer, ignore_merges, some)
    for name, prefix in [("SentencePiece, space in front", True), ("SentencePiece", False)]:
        with report.part(name):
            compare(report, found, name, sentence_piece(texts, prefix), False, [*texts, MARKS])


def sentence_piece(texts: list[str], prefix: bool) -> Tokenizer:
    """As transformers rewrites a SentencePiece model: every way to make a token is a merge."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    trained.train_from_iterator([*texts, *TEXTS * 10], trainers.BpeTrainer(vocab_size=240, limit_alphabet=110, show_progress=False))
    learned = json.loads(trained.to_str())["model"]["vocab"]
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned, key=learned.get)]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in sorted((token for token in learned if len(token) > 1), key=learned.get):
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        merges += sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("</p>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def compare(report: Report, found: Models, name: str, tokenizer: Tokenizer, ignore_merges: bool, texts: list[str]) -> None:
    """Exports any model with this tokenizer and tokenizes with both."""
    source = next(name for name, kind in RANDOM.items() if kind[-1] == "llama")
    folder = found.work / "tokenizers" / name.replace(" ", "-").replace(",", "")
    shutil.copytree(found.get(source).folder, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    file = json.loads((folder / "tokenizer.json").read_text())
    file["model"]["ignore_merges"] = ignore_merges
    (folder / "tokenizer.json").write_text(json.dumps(file))
    for other in ("tokenizer_config.json", "generation_config.json"):
        (folder / other).unlink(missing_ok=True)
    target = folder.with_suffix(".gguf")
    found.bitnet.export(folder, target, "gguf-f16")
    theirs, ours = Tokenizer.from_file(str(folder / "tokenizer.json")), Llama(str(target), vocab_only=True, verbose=False)
    results = {repr(text): ours.tokenize(text.encode(), add_bos=True, special=True) == theirs.encode(text).ids for text in texts}
    named = ours.metadata.get("tokenizer.ggml.pre")
    ours.close()
    report.equal(f"{name}, in the file as {named}", results)
    target.unlink()
