"""llama.cpp through its Python binding."""
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama


class Engine:
    """One GGUF file in llama.cpp, its cache in f32, without flash attention: as exact as it computes."""

    def __init__(self, file: Path, n_ctx: int):
        self.model = Llama(str(file), n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, n_threads=2, n_threads_batch=2,
                           logits_all=True, flash_attn=False, type_k=0, type_v=0, verbose=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.model.close()

    @property
    def architecture(self) -> str:
        return self.model.metadata["general.architecture"]

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """f32 [batch, seq, vocab] of `ids` int64 [batch, seq]; each row starts anew."""
        rows = []
        for row in ids.tolist():
            self.model.reset()
            self.model.eval(row)
            rows.append(np.array(self.model.scores[: len(row)], dtype=np.float32))
        return torch.from_numpy(np.stack(rows))

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        """The `n` most probable tokens after `prompt`, one after the other."""
        self.model.reset()
        self.model.eval(prompt)
        found = []
        for _ in range(n):
            found.append(int(self.model.scores[self.model.n_tokens - 1].argmax()))
            self.model.eval(found[-1:])
        return found

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=False, special=True)


def logits(file: Path, ids: torch.Tensor) -> torch.Tensor:
    with Engine(file, n_ctx=max(64, ids.shape[1])) as engine:
        return engine.logits(ids)
