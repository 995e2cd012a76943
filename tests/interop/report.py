"""The numbered list of checks: what was expected, what was measured, whether it held, and the page that says so."""
import datetime
import platform
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Row:
    subject: str
    what: str
    expected: str
    measured: str
    held: bool


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)  # what a subject was measured on
    subject: str = ""

    def run(self, subject: str, check) -> None:
        """Runs one subject."""
        self.subject = subject
        self.notes[subject] = []
        print(f"\n== {subject}", flush=True)
        before = len(self.rows)
        with self.part("the whole"):
            check()
        if len(self.rows) == before:
            self.holds("the whole", False, "checks", "nothing was checked")

    @contextmanager
    def part(self, what: str):
        """A part of a subject: an error in it is a failed row, and the rest goes on."""
        try:
            yield
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.holds(what, False, "no error", f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}")

    def holds(self, what: str, held: bool, expected: str = "yes", measured: str | None = None) -> None:
        measured = measured if measured is not None else ("yes" if held else "no")
        row = Row(self.subject, what, expected, " ".join(measured.split())[:300], bool(held))
        self.rows.append(row)
        print(f"{len(self.rows):3d} {'ok  ' if held else 'FAIL'} {what}: {row.measured} (expected {expected})", flush=True)

    def within(self, what: str, measured: dict[str, float], **bounds: float) -> None:
        """Each named figure of `ternary.compare` is at most its bound; `top1` is at least its bound."""
        held = all(measured[key] >= bound if key == "top1" else measured[key] <= bound for key, bound in bounds.items())
        expected = ", ".join(f"{key} {'≥' if key == 'top1' else '≤'} {bound:g}" for key, bound in bounds.items())
        self.holds(what, held, expected, ", ".join(f"{key} {shown(key, measured[key])}" for key in bounds))

    def equal(self, what: str, results: dict[str, bool]) -> None:
        """Every one of the named results holds, and there are some; a failure names the first that do not."""
        failed = [name for name, held in results.items() if not held]
        names = f": not {', '.join(failed[:5])}{' …' * (len(failed) > 5)}" if failed else ""
        self.holds(what, not failed and bool(results), f"{len(results)} of {len(results)}",
                   f"{len(results) - len(failed)} of {len(results)}{names}")

    def note(self, text: str) -> None:
        """What the reader of the page should know about the rows of this subject."""
        self.notes[self.subject].append(text)
        print("   ", text, flush=True)

    def failed(self) -> list[int]:
        return [number for number, row in enumerate(self.rows, 1) if not row.held]

    def page(self, versions: list[str], commands: list[str], introduction: str) -> str:
        failed = self.failed()
        verdict = f"All {len(self.rows)} checks held." if not failed else \
            f"**{len(failed)} of {len(self.rows)} checks failed: {', '.join(map(str, failed))}.**"
        lines = [introduction, "", f"Made on {datetime.date.today()}, {platform.machine()}, {cpu()}. {verdict}", ""]
        lines += ["| what | version |", "|---|---|", *versions, ""]
        for subject in self.notes:
            lines += [f"## {subject}", "", *[line for note in self.notes[subject] for line in (note, "")]]
            lines += ["| # | what | expected | measured | held |", "|---|---|---|---|---|"]
            lines += [f"| {number} | {cell(row.what)} | {cell(row.expected)} | {cell(row.measured)} | {'yes' if row.held else '**no**'} |"
                      for number, row in enumerate(self.rows, 1) if row.subject == subject]
            lines.append("")
        lines += ["## The commands", "", "In the order in which they ran; `WORK` is a scratch folder.", "", "```text", *commands, "```", ""]
        return "\n".join(lines)


def shown(key: str, figure: float) -> str:
    return f"{figure:.4f}" if key == "top1" else f"{figure:.1e}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def cpu() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
