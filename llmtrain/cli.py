"""The command line: words to a run, the run to its end, mistakes and signals to one line and an exit code."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmtrain import faults, heartbeat
from llmtrain.errors import EXIT_CODES, ConfigError, Stopped, UserError
from llmtrain.redaction import redact

if TYPE_CHECKING:
    from llmtrain.record import RunRecord
    from llmtrain.run import Run

OPTIONS = ("--help", "-h", "--cfg")
STOPPED = "stopped: the same command continues"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code, as ``llmtrain.errors`` lists them."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _command(words))


def guarded(work: Callable[[], int | None]) -> int:
    """Do ``work`` and return its exit code; what the user can mend, or did, becomes one line on stderr and its code."""
    log_to_stderr()
    if "LOCAL_RANK" in os.environ and "RANK" not in os.environ:  # as Lightning starts further ranks
        _end_with_parent()
    signals = Signals()
    try:
        with signals:
            heartbeat.start()
            faults.arm(os.environ.get(faults.VARIABLE, ""))
            return work() or 0
    except Stopped as stop:
        line, code = str(stop), stop.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if signals.code is not None or isinstance(error, KeyboardInterrupt):
            # compiled code turns what a signal raises into errors of its own
            line, code = STOPPED, signals.code or 130
        elif isinstance(error, UserError):
            line, code = f"error: {error}", error.exit_code
        else:
            raise
    with contextlib.suppress(BrokenPipeError):
        print(redact(line), file=sys.stderr)
    return code


class Signals:
    """Within it, the first SIGINT, SIGTERM or SIGUSR1 raises ``Stopped``; training puts its own answer in the place.

    Compiled code may keep the main thread from it (the training of a tokenizer), or lose the exception. So a thread
    waits too, and ends the process ``GRACE`` seconds later, as it may end anywhere: what is on disk survives a kill.
    A second signal does not wait.
    """

    GRACE = 2.0

    def __init__(self) -> None:
        self.code: int | None = None  # of the first signal
        self._before: dict[int, Any] = {}
        self._left = threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        threading.Thread(target=self._wait, args=(reader,), daemon=True).start()
        self._woken = signal.set_wakeup_fd(self._writer)
        self._before = {number: signal.signal(number, self.receive) for number in EXIT_CODES}

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._woken)
            os.close(self._writer)

    def receive(self, number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[number]
        if self.code is not None:
            _end(code)
        self.code = code
        raise Stopped(STOPPED, code)

    def _wait(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as received:
            while number := received.read(1):
                if (code := EXIT_CODES.get(number[0])) and not self._left.wait(self.GRACE):
                    _end(code)


def _end(code: int) -> None:
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a bar hides the cursor
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(2, f"{shown}{STOPPED}\n".encode())
    os._exit(code)


def _end_with_parent() -> None:
    """End this process, a further rank, when the first one has ended: it would wait for it until a timeout."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(EXIT_CODES[signal.SIGTERM])

    threading.Thread(target=watch, daemon=True).start()


def _die_by_default() -> None:
    """In a fork, such as a worker that reads rows: a signal ends it as it ends any process."""
    for number in EXIT_CODES:
        if getattr(signal.getsignal(number), "__func__", None) is Signals.receive:
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_die_by_default)


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

        from llmtrain.compose import compose

        print(OmegaConf.to_yaml(compose(overrides)), end="")
        return 0
    from llmtrain.compose import run_from

    run = run_from(overrides)
    return _dry_run(run) if run.dry_run else _train(run, overrides)


def _train(run: "Run", overrides: list[str]) -> int:
    from llmtrain.pretrain import train
    from llmtrain.trainer import leave_group

    finished = (run.folder / "record.json").exists()
    try:
        record = train(run, overrides=overrides)
    except Stopped:
        leave_group()
        raise
    heartbeat.beat(mark=heartbeat.DONE)
    leave_group()
    faults.at("exit")
    if record is None:
        return 0  # a further rank of several
    # what was finished before is printed as the file that it left, what ended now in a few words
    print(
        (run.folder / "record.json").read_text(encoding="utf-8") if finished else summary(run, record), end=""
    )
    return 0


def _dry_run(run: "Run") -> int:
    from llmtrain.dry_run.command import dry_run

    report = dry_run(run)
    if run.estimate.json is not None:
        report.write(run.estimate.json)
    print(report.table(), end="")
    return 0


def summary(run: "Run", record: "RunRecord") -> str:
    """What a person wants to know of a run that ended, a line each."""
    score, folder = record.score, run.folder
    error = "" if score.se is None else f" ± {score.se:.4f}"  # one held-out row has none
    rows = [
        ("score", f"{score.value:.4f}{error} {score.unit} ({score.name}, {score.n:,} positions)"),
        ("bits per byte", "none" if record.bits_per_byte is None else f"{record.bits_per_byte:.4f}"),
        ("speed", f"{record.tokens_per_second:,.0f} tokens/s, MFU {record.mfu:.1%}"),
        (
            "time",
            f"{record.wall_seconds:.0f} s, {record.raw_tokens:,} tokens, {record.steps:,} steps{_guarded(record)}",
        ),
        ("samples", str(folder / "samples.md")),
        ("figure", str(folder / "figures" / "loss.png")),
        ("record", str(folder / "record.json")),
    ]
    return f"{record.status}\n" + "".join(f"  {name:<14}{value}\n" for name, value in rows)


def _guarded(record: "RunRecord") -> str:
    counts = {"skipped": record.skipped_steps, "rollbacks": record.rollbacks}
    said = [f"{n:,} {what}" for what, n in counts.items() if n]
    return f" ({', '.join(said)}: see anomalies.jsonl)" if said else ""


def log_to_stderr() -> None:
    """Our own messages as plain lines on stderr; those of libraries stay as they are."""
    ours = logging.getLogger("llmtrain")
    if not ours.handlers:
        ours.addHandler(_Lines())
        ours.setLevel(logging.INFO)


class _Lines(logging.Handler):
    """Writes to the stderr of the moment: a live bar replaces it while it is up."""

    def emit(self, record: logging.LogRecord) -> None:
        print(redact(self.format(record)), file=sys.stderr)


def _check_options(options: list[str]) -> None:
    from llmtrain.typos import did_you_mean, nearest

    for option in options:
        if option in {"-m", "--multirun"}:
            raise ConfigError(
                f"{option}: one command is one run; start one for each value, or see scripts/ for sweeps"
            )
        if option not in OPTIONS:
            raise ConfigError(f"unknown option {option}: {did_you_mean(nearest(option, OPTIONS), OPTIONS)}")
