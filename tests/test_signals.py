"""A signal outside training ends a command at once, in one line, and costs nothing that was done."""

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from llmtrain import cli
from llmtrain.compose import run_from
from llmtrain.data.prepare import prepare
from llmtrain.errors import EXIT_CODES
from processes import Child, forked, read_until
from runs import REPO, overrides, write_text

STOPPED = "stopped: the same command continues\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    write_text(folder)
    return folder


def ended_by(number: int, child: Child) -> None:
    code, _, err = child.ended()
    assert code == EXIT_CODES[number], err
    assert err.endswith(STOPPED) and not re.search("Traceback|[Ee]rror|[Ww]arn", err)
    assert err.count("stopped") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("module", "number"), [("hydra", signal.SIGINT), ("torch.nn", signal.SIGTERM)])
@pytest.mark.fault("F3")
def test_a_signal_while_packages_are_imported_ends_the_command_in_one_line(
    module: str, number: signal.Signals
) -> None:
    code = f"""
import os, sys
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Sender())
from llmtrain.cli import main
sys.exit(main(["experiment=clm_dense"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_CODES[number], "", STOPPED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [("read", signal.SIGINT), ("tokenizer", signal.SIGTERM), ("tokenize", signal.SIGUSR1)],
)
@pytest.mark.fault("F3")
def test_a_signal_while_a_corpus_is_prepared_keeps_the_stages_that_are_done(
    tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("[a-d]*.py"))]
    (tmp_path / "text.txt").write_text("".join(texts), encoding="utf-8")
    tokenizer = {"tokenizer": "sentencepiece", "tokenizer__vocab_size": 2000}
    words = overrides(tmp_path, name="a", seq_len=64, **tokenizer)
    with forked(lambda: cli.main(words)) as child:
        read_until(child.out, f"preparing: {stage}\n")
        child.signal(number)
        ended_by(number, child)
    stages = ["read", "split", "tokenizer", "tokenize"]
    done_again = set[str]()
    run = run_from(words)
    prepare(run.data, run.tokenizer, progress=lambda now, done, total: done_again.add(now))
    assert done_again <= set(stages[stages.index(stage) :])


SET_UP, SCORED, CONCLUDED = (
    "llmtrain.lit.Pretrain.configure_optimizers", "llmtrain.callbacks.evaluation.Evaluation.conclude",
    "llmtrain.pretrain.conclude",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "number"),
    [
        (SET_UP, signal.SIGINT),
        (SET_UP, signal.SIGTERM),
        (SCORED, signal.SIGTERM),
        (CONCLUDED, signal.SIGUSR1),
    ],
    ids=["set up, SIGINT", "set up, SIGTERM", "scored, SIGTERM", "concluded, SIGUSR1"],
)
@pytest.mark.fault("F3")
def test_a_signal_while_training_is_set_up_or_concluded_loses_nothing(
    home: Path, where: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{number.name}-{where.rpartition('.')[2]}"
    words = overrides(home, name=name, steps=1, seq_len=64, eval__samples=0, eval__rows=4)
    before = pkgutil.resolve_name(where)

    def sends(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), number)
        return before(*args, **kwargs)

    with (
        monkeypatch.context() as patch,
        forked(lambda: patch.setattr(where, sends) or cli.main(words)) as child,
    ):
        ended_by(number, child)
    assert not (home / "runs" / name / "record.json").exists()
    assert (home / "runs" / name / "checkpoints").exists() == (where != SET_UP)
    if number != signal.SIGINT:
        assert cli.main(words) == 0
        assert json.loads((home / "runs" / name / "record.json").read_text())["steps"] == 1


@pytest.mark.fault("F3")
@pytest.mark.slow
def test_a_signal_between_two_tries_of_a_size_is_heeded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_FAULT", "oom@step=0")
    words = overrides(
        home, name="tries", micro_rows="auto", steps=2, seq_len=64, eval__samples=0, eval__rows=4
    )

    def sends() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with (
        monkeypatch.context() as patch,
        forked(lambda: patch.setattr("llmtrain.pretrain.release", sends) or cli.main(words)) as child,
    ):
        code, _, said = child.ended()
    assert code == 143 and said.endswith(f"{cli.STOPPED}\n")
    assert not (home / "runs" / "tries" / "record.json").exists()


def test_compiled_code_that_does_not_heed_a_signal_is_ended_a_moment_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli.Signals, "GRACE", 0.2)

    def deaf() -> int:
        print("begun", flush=True)
        while True:
            try:
                time.sleep(60)
            except cli.Stopped:  # as if it had been lost in C
                continue

    with forked(lambda: cli.guarded(deaf)) as child:
        read_until(child.out, "begun")
        child.signal(signal.SIGTERM)
        ended_by(signal.SIGTERM, child)
    with forked(lambda: cli.guarded(deaf)) as child:
        read_until(child.out, "begun")
        child.err.close()  # whoever would read the line
        child.signal(signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 143


@pytest.mark.fault("F3")
def test_the_second_signal_does_not_wait() -> None:
    def slow() -> int:
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return 0

    with forked(lambda: cli.guarded(slow)) as child:
        read_until(child.out, "begun")
        child.signal(signal.SIGTERM)
        ended_by(signal.SIGINT, child)


def test_what_a_signal_breaks_is_no_bug_of_ours() -> None:
    """Compiled code that calls back turns what is raised in it into an error of its own."""

    def breaks() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except cli.Stopped:
            raise RuntimeError("INTERNAL: Stopped") from None
        return 0

    with forked(lambda: cli.guarded(breaks)) as child:
        ended_by(signal.SIGTERM, child)


def test_the_handlers_of_a_caller_are_put_back() -> None:
    before = [signal.getsignal(number) for number in EXIT_CODES]
    assert cli.guarded(lambda: 0) == 0
    assert [signal.getsignal(number) for number in EXIT_CODES] == before


def test_a_fork_of_a_command_dies_of_a_signal_as_any_process_does() -> None:
    def forks() -> int:
        if (pid := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with forked(lambda: cli.guarded(forks)) as child:
        assert child.ended() == (signal.SIGTERM, "", "")


def test_a_further_rank_ends_with_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("RANK", raising=False)

    def rank() -> None:
        print("begun", flush=True)
        time.sleep(100)

    def first() -> int:
        if os.fork() == 0:
            os._exit(cli.guarded(rank))
        time.sleep(100)
        return 0

    with forked(first) as child:
        read_until(child.out, "begun")
        child.signal(signal.SIGKILL)
        assert child.ended() == (-signal.SIGKILL, "", "")  # once nobody holds its pipes
