"""The commands as a user runs them: what they say, how they end, and that a stop costs nothing but time."""

import contextlib
import io
import json
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain import cli
from llmtrain.philox import generator
from llmtrain.pretrain import train
from processes import Child, forked, read_until
from runs import REPO, metrics, overrides, tiny, weights, write_text

STEPS = 30
CHANGES: dict[str, Any] = {
    "steps": STEPS, "checkpoint__every": 4, "eval__every": 12, "eval__samples": 0, "optim__ema": 0.9,
}  # fmt: skip
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run has gone to its end without interruption, as ``whole``."""
    folder = tmp_path_factory.mktemp("commands")
    write_text(folder)
    train(tiny(folder, name="whole", **CHANGES))
    return folder


def assert_whole(home: Path, name: str) -> None:
    """The same command, given again, ends with the numbers and the weights of the run that was not stopped."""
    assert cli.main(overrides(home, name=name, **CHANGES)) == 0
    assert metrics(home / "runs" / name) == metrics(home / "runs" / "whole")
    assert weights(home / "runs" / name, STEPS) == weights(home / "runs" / "whole", STEPS)


@contextlib.contextmanager
def started(home: Path, name: str) -> Iterator[Child]:
    """The command in its third step or later, halted, so that it cannot end before it is looked at."""
    with forked(lambda: cli.main(overrides(home, name=name, **CHANGES))) as child:
        read_until(child.out, f"step 3/{STEPS} ")
        child.signal(signal.SIGSTOP)
        yield child


def script(name: str, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script, run in this process: importing torch anew takes seconds."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [name, *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(REPO / "scripts" / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("a script ends by raising SystemExit")


# ---- stopping


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_one_line_and_the_same_command_finishes_it(
    home: Path, number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"signal-{number}"
    with started(home, name) as child:
        assert cli.main(overrides(home, name=name, **CHANGES)) == 5  # one process a folder
        assert f"is in use by process {child.pid}" in capsys.readouterr().err
        child.signal(number)
        child.signal(signal.SIGCONT)
        ended, out, err = child.ended()
    assert ended == code, err
    *before, last = err.splitlines()
    assert re.fullmatch(rf"stopped at step \d+ of {STEPS}, saved in .*: the same command continues", last)
    plain_lines(out)
    quiet_lines(before)
    assert_whole(home, name)


@pytest.mark.slow
def test_a_kill_at_a_random_moment_costs_nothing_but_time(home: Path) -> None:
    rng = generator(0, "kill")
    with started(home, "killed") as child:
        child.signal(signal.SIGCONT)
        time.sleep(float(rng.uniform(0, 0.5)))
        child.signal(signal.SIGKILL)
    assert_whole(home, "killed")


def plain_lines(out: str) -> None:
    """Progress off a terminal: whole lines, nothing that moves a cursor."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert all(re.match(rf"step \d+/{STEPS}  |preparing: |  |finished", line) for line in out.splitlines())


def quiet_lines(err: list[str]) -> None:
    """No warnings, no adverts, no traceback: what is there, we said."""
    assert len(err) <= 3
    assert not re.search(r"warn|Traceback|Tip|GPU available|deprecated|http", "".join(err), re.IGNORECASE)


# ---- what is shown


@pytest.mark.slow
def test_a_terminal_shows_loss_speed_utilisation_and_time_left(home: Path) -> None:
    """Under a pseudo-terminal of 80 columns; and nothing was imported for what was not chosen."""
    code = (
        "import sys; from llmtrain.cli import main; rc = main(sys.argv[1:]);"
        "assert not {'wandb', 'tensorboard', 'tensorflow'} & sys.modules.keys(); sys.exit(rc)"
    )
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", code, *overrides(home, name="terminal", **CHANGES)]
    env = ENV | {"TERM": "xterm-256color", "COLUMNS": "80"}
    shown = b""
    with subprocess.Popen(command, cwd=REPO, env=env, stdout=follower, stderr=follower) as process:
        os.close(follower)
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal is an error
            while chunk := os.read(leader, 65536):
                shown += chunk
        assert process.wait() == 0, shown.decode()
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(rf"\d+/{STEPS} .*loss \d+\.\d+  [\d,]+ tokens/s  MFU \d+\.\d%  \d+:\d\d left", text)
    assert re.search(r"validation/bits_per_byte \d+\.\d+", text)
    assert "Traceback" not in text and "Warning" not in text


@pytest.mark.slow
def test_every_command_explains_itself_without_torch() -> None:
    names = ["train.py", *(f"scripts/{name}.py" for name in ("generate", "prepare", "show", "bench"))]
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help']\n"
        "    try: runpy.run_path(name, run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code, name\n"
        "    print('----')\n"
        "assert not {'torch', 'lightning', 'wandb', 'datasets'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=REPO, env=ENV, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("----\n")[:-1]
    assert len(said) == len(names) and all(len(text.splitlines()) >= 3 for text in said)


@pytest.mark.slow
def test_a_wrong_value_is_answered_before_lightning_is_imported(home: Path) -> None:
    code = (
        "import sys; from llmtrain.cli import main; rc = main(sys.argv[1:]);"
        "assert not {'lightning', 'wandb', 'datasets', 'matplotlib'} & sys.modules.keys(); sys.exit(rc)"
    )
    command = [sys.executable, "-c", code, *overrides(home, optim__lr="fast")]
    done = subprocess.run(command, cwd=REPO, env=ENV, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: optim.lr: got 'fast', expected a number"
    assert done.stderr.count("error") == 1


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"steps": 0}, 2, "steps"),
        ({"schedule__warmup": 100}, 2, f"the run has {STEPS}"),
        ({"micro_rows": 3}, 2, "micro_rows=2 does"),
        ({"init_from": "nobody"}, 2, "nobody is no run"),
        ({"model__layers__0__mixer__head_dim": 7}, 2, "head_dim"),
        ({"data__source__paths": "[nowhere.txt]"}, 3, "nowhere.txt"),
        ({"seq_len": 10**6}, 3, "fewer than one row"),
        ({"runs": "/proc/none"}, 5, "/proc/none"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code_that_says_its_kind(
    home: Path, changes: dict[str, Any], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"mistake-{next(iter(changes))}"
    assert cli.main(overrides(home, name=name, **(CHANGES | changes))) == code
    answer = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(answer) == 1 and said in answer[0]


# ---- scripts


def test_the_same_seed_is_the_same_text(home: Path) -> None:
    run = str(home / "runs" / "whole")
    words = (run, "--prompt", "def ", "--tokens", "40")
    (code, one, _), (_, again, _), (_, other, _) = (
        script("generate.py", *words, "--seed", seed) for seed in ("3", "3", "4")
    )
    assert code == 0 and one == again != other
    assert one.startswith("def ") and len(one.encode()) > 10
    assert script("generate.py", *words, "--temperature", "0")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "nobody"),
        (["RUN", "--step", "7"], "no checkpoint of step 7"),
        (["RUN", "--temperature", "-1"], "temperature must not be negative"),
        (["RUN", "--top-p", "2"], "top_p must be in"),
        (["RUN", "--tokens", "-5"], "tokens"),
    ],
)
def test_a_mistake_in_sampling_is_one_line(home: Path, words: list[str], said: str) -> None:
    code, out, err = script("generate.py", *(w.replace("RUN", str(home / "runs" / "whole")) for w in words))
    assert code in {2, 5} and out == ""
    assert said in err and err.count("error: ") == 1 and "Traceback" not in err


def test_a_corpus_can_be_prepared_without_a_run(home: Path) -> None:
    words = [word for word in overrides(home, seq_len=64) if not word.startswith(("data.cache", "name="))]
    cache = home / "prepared"
    code, out, err = script("prepare.py", *words, f"data.cache={cache}")
    assert code == 0 and "error" not in err
    report = json.loads(out[out.index("{") : out.rindex("}") + 1])
    part = report["parts"]["corpus"]
    assert part["train"]["bytes"] + part["validation"]["bytes"] == (home / "text.txt").stat().st_size
    assert len(list(cache.glob("*/report.json"))) == 1
    again = script("prepare.py", *words, f"data.cache={cache}")
    assert again[0] == 0 and "tokenize" not in again[1].partition("{")[0]


@pytest.mark.slow
def test_a_benchmark_has_the_figures_that_it_promises_and_they_agree(home: Path) -> None:
    file = home / "bench.json"
    words = [*overrides(home, steps=5, seq_len=128), "repeats=3", f"json={file}"]
    code, out, err = script("bench.py", *words)
    assert code == 0, err
    found = json.loads(file.read_text())
    assert found.keys() >= {
        "tokens_per_second", "mfu", "matmul_flops_per_second", "peak_memory_bytes", "seconds", "precision", "n",
        "flops_per_step",
    }  # fmt: skip
    assert found["seconds"].keys() == {"forward", "backward", "optimizer", "data", "framework"}
    step = sum(found["seconds"].values())
    assert all(seconds > 0 for phase, seconds in found["seconds"].items() if phase != "framework")
    assert found["tokens_per_second"] == pytest.approx(4 * 128 / step)
    assert found["mfu"] * found["matmul_flops_per_second"] == pytest.approx(found["flops_per_step"] / step)
    assert (found["precision"], found["n"]) == ("fp32", 7744)
    for word in ("tokens/s", "forward", "GFLOP/s", "peak memory"):
        assert word in out


@pytest.mark.parametrize("word", ["repeats=0", "repeats=many", "against=gpt", "json=/proc/none/file.json"])
def test_a_mistake_in_a_benchmark_is_one_line(home: Path, word: str) -> None:
    code, _, err = script("bench.py", *overrides(home, seq_len=16, batch_rows=1), "repeats=1", word)
    assert code in {2, 5}
    assert word.partition("=")[0] in err and len([x for x in err.splitlines() if "error: " in x]) == 1
