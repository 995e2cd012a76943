"""The `bitnet` command, as a user runs it."""
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


# In a small process of its own: what a program's parent has resident counts as its own until it starts.
PEAK_MEMORY = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Failed(Exception):
    """The command ended with an error; the text is what it printed."""


class Bitnet:
    def __init__(self, program: Path, work: Path):
        self.program, self.work = program.resolve(), work.resolve()
        self.lines: list[str] = []  # every command line that was run, for the transcript

    def run(self, *words) -> str:
        """Runs `bitnet <words>` and returns what it printed.

        Raises `Failed` if its exit status is not 0."""
        words = self.noted(words)
        done = subprocess.run([self.program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"exit status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def noted(self, words) -> list[str]:
        words = [str(word) for word in words]
        self.lines.append(" ".join(["bitnet", *words]).replace(str(self.work), "WORK"))
        return words

    def peak_memory(self, *words) -> int:
        """Runs `bitnet <words>` and returns the most memory that it had resident, in bytes.

        Raises `Failed` if its exit status is not 0."""
        words = self.noted(words)
        done = subprocess.run([sys.executable, "-c", PEAK_MEMORY, self.program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"exit status {done.returncode}: {done.stderr.strip()}")
        return int(done.stdout)

    def convert(self, source: Path, target: Path, sub_norm: str) -> Path:
        self.run("convert", source, target, "--sub-norm", sub_norm)
        return target

    def export(self, source: Path, target: Path, form: str, *flags: str) -> str:
        return self.run("export", source, target, "--format", form, *flags)

    def logits(self, source: Path, ids: torch.Tensor) -> torch.Tensor:
        """Logits f32 [batch, seq, vocab] of `ids` int64 [batch, seq]."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            given, out = Path(folder, "ids.safetensors"), Path(folder, "logits.safetensors")
            save_file({"input_ids": ids.contiguous()}, given)
            self.run("logits", source, "--ids", given, "--out", out)
            self.lines[-1] = self.lines[-1].replace(str(folder).replace(str(self.work), "WORK") + "/", "")
            return load_file(out)["logits"]

    def refused(self, *words) -> str | None:
        """The message with which the command refuses `words`, or None if it does not refuse."""
        try:
            self.run(*words)
        except Failed as error:
            return str(error)
        return None
