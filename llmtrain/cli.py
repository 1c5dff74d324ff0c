"""The command line: words to a run, the run to its end, mistakes to one line and an exit code."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmtrain.compose import compose, run_from
from llmtrain.errors import ConfigError, UserError
from llmtrain.typos import did_you_mean, nearest

if TYPE_CHECKING:
    from llmtrain.record import RunRecord
    from llmtrain.run import Run

OPTIONS = ("--help", "-h", "--cfg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code, as ``llmtrain.errors`` lists them."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _command(words))


def guarded(work: Callable[[], int | None]) -> int:
    """Do ``work`` and return its exit code; what the user can mend becomes one line on stderr and the code for it."""
    log_to_stderr()
    try:
        return work() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: the same command continues", file=sys.stderr)
        return 130


def _command(words: list[str]) -> int:
    options = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    if {"--help", "-h"} & set(options):
        from llmtrain.help import help_text

        print(help_text())
        return 0
    _check_options(options)
    if "--cfg" in options:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(compose(overrides)), end="")
        return 0
    run = run_from(overrides)
    return _train(run, overrides)


def _train(run: "Run", overrides: list[str]) -> int:
    from llmtrain.pretrain import train

    finished = (run.folder / "record.json").exists()
    record = train(run, overrides=overrides)
    if record is None:
        return 0  # a further rank of several
    # what was finished before is printed as the file that it left, what ended now in a few words
    print(
        (run.folder / "record.json").read_text(encoding="utf-8") if finished else summary(run, record), end=""
    )
    return 0


def summary(run: "Run", record: "RunRecord") -> str:
    """What a person wants to know of a run that ended, a line each."""
    score, folder = record.score, run.folder
    rows = [
        ("score", f"{score.value:.4f} ± {score.se:.4f} {score.unit} ({score.name}, {score.n:,} positions)"),
        ("bits per byte", "none" if record.bits_per_byte is None else f"{record.bits_per_byte:.4f}"),
        ("speed", f"{record.tokens_per_second:,.0f} tokens/s, MFU {record.mfu:.1%}"),
        ("time", f"{record.wall_seconds:.0f} s, {record.raw_tokens:,} tokens, {record.steps:,} steps"),
        ("samples", str(folder / "samples.md")),
        ("figure", str(folder / "figures" / "loss.png")),
        ("record", str(folder / "record.json")),
    ]
    return f"{record.status}\n" + "".join(f"  {name:<14}{value}\n" for name, value in rows)


def log_to_stderr() -> None:
    """Our own messages as plain lines on stderr; those of libraries stay as they are."""
    ours = logging.getLogger("llmtrain")
    if not ours.handlers:
        ours.addHandler(_Lines())
        ours.setLevel(logging.INFO)


class _Lines(logging.Handler):
    """Writes to the stderr of the moment: a live bar replaces it while it is up."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _check_options(options: list[str]) -> None:
    for option in options:
        if option in {"-m", "--multirun"}:
            raise ConfigError(
                f"{option}: one command is one run; start one for each value, or see scripts/ for sweeps"
            )
        if option not in OPTIONS:
            raise ConfigError(f"unknown option {option}: {did_you_mean(nearest(option, OPTIONS), OPTIONS)}")
