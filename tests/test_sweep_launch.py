"""Launchers of a sweep's cells beside this machine's processes: real runs by submitit's local executor, and by Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llmtrain import cli
from llmtrain.errors import ConfigError
from llmtrain.lock import in_use
from llmtrain.sweep.load import sweep_from
from llmtrain.sweep.pool import Ended, Job, Local, Pool
from llmtrain.sweep.ray import Ray
from llmtrain.sweep.slurm import Slurm
from processes import Child, forked, read_until
from runs import overrides, write_text

pytestmark = pytest.mark.slow

ON_RAY = """
import json, sys
from pathlib import Path
from llmtrain import cli
from llmtrain.sweep.pool import Job
from llmtrain.sweep.ray import Ray

jobs = [Job(name, tuple(words), Path(log)) for name, words, log in json.loads(sys.argv[1])]
tell = lambda ended: print(ended.job.id, ended.exit_code, flush=True)
sys.exit(cli.guarded(lambda: Ray(workers=2).pool(Path()).run(jobs, lambda job: None, tell)))
"""
SLURM = Slurm(cluster="local", workers=2, minutes=30)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_text(tmp_path)
    return tmp_path


def job(home: Path, name: str, **changes: object) -> Job:
    words = overrides(home, seq_len=32, batch_rows=2, eval__rows=8, eval__samples=0, name=name, **changes)
    words = [word for word in words if not word.startswith("trainer.threads=")]
    return Job(name, tuple(words), home / "logs" / f"{name}.log")


def ends(pool: Pool, jobs: list[Job]) -> dict[str, int]:
    found: list[Ended] = []
    pool.run(jobs, lambda job: None, found.append)
    return {one.job.id: one.exit_code for one in found}


def sweep(pool: Callable[[], Pool], jobs: list[Job]) -> int:
    """A sweep that says when it has begun, and how its cells ended."""

    def work() -> None:
        pool().run(
            jobs,
            lambda job: print("begun", flush=True),
            lambda ended: print(ended.job.id, ended.exit_code, flush=True),
        )

    return cli.guarded(work)


def steps(home: Path, name: str) -> int:
    """How many steps a run has logged."""
    path = home / "runs" / name / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 90
    while not true():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.1)


def killed(child: Child) -> None:
    """What it has started may go on, and write where it wrote: nobody waits for that."""
    child.signal(signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == -signal.SIGKILL


def begun(home: Path, name: str) -> bool:
    return steps(home, name) > 0


def is_free(folder: Path) -> bool:
    return not in_use(folder)


def has_saved(home: Path, name: str) -> bool:
    return len(saved(home, name)) == 1


def saved(home: Path, name: str) -> list[str]:
    return sorted(path.name for path in (home / "runs" / name / "checkpoints").glob("step-*"))


def test_a_job_trains_and_a_mistake_in_another_is_its_exit_code_and_last_line(home: Path) -> None:
    jobs = [job(home, "good", steps=3), job(home, "bad", optim__rl=1)]
    assert ends(SLURM.pool(home), jobs) == {"good": 0, "bad": 2}
    assert json.loads((home / "runs" / "good" / "record.json").read_text())["steps"] == 3
    assert "did you mean optim.lr" in (home / "logs" / "bad.log").read_text()
    assert not list((home / "slurm").glob("*.job"))


def test_a_killed_sweep_leaves_its_jobs_and_the_next_start_finds_them(home: Path) -> None:
    endless = job(home, "endless", steps=10**6)
    with forked(lambda: sweep(lambda: SLURM.pool(home), [endless])) as child:
        wait_until(lambda: steps(home, "endless") > 0)
        killed(child)
    before = steps(home, "endless")
    wait_until(lambda: steps(home, "endless") > before + 3)
    with forked(lambda: sweep(lambda: SLURM.pool(home), [endless])) as child:
        read_until(child.out, "begun")
        time.sleep(1)
        child.signal(signal.SIGTERM)
        code, out, said = child.ended()
    assert (code, said) == (143, f"{cli.STOPPED}\n")
    assert out == "endless 143\n"
    assert len(saved(home, "endless")) == 1  # it has ended its step and saved
    assert len(list((home / "slurm").glob("*_submitted.pkl"))) == 1


def test_a_job_whose_time_is_over_goes_on_in_another(home: Path) -> None:
    """SLURM warns a job by a signal before its time is over, which submitit chooses: SIGUSR2."""
    long = job(home, "long", steps=600)
    pool = SLURM.pool(home)

    def warn() -> int:
        wait_until(lambda: steps(home, "long") > 2)
        holder = json.loads((home / "runs" / "long" / ".lock").read_text())
        os.kill(holder["pid"], signal.SIGUSR2)
        return 0

    with forked(warn) as child:
        assert ends(pool, [long]) == {"long": 0}
        assert child.ended()[0] == 0
    assert len(list((home / "slurm").glob("*_submitted.pkl"))) == 2
    assert json.loads((home / "runs" / "long" / "record.json").read_text())["steps"] == 600


def on_ray(home: Path, jobs: list[Job]) -> subprocess.Popen[bytes]:
    """A sweep on a Ray cluster of its own, in a new process: Ray does not start in forks, and keeps what they open."""
    said = [[one.id, list(one.words), str(one.log)] for one in jobs]
    with (home / "said.txt").open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", ON_RAY, json.dumps(said)], stdout=out, stderr=out)


def test_cells_of_a_ray_cluster_save_when_the_sweep_is_told_to_end_and_end_when_it_is_killed(
    home: Path,
) -> None:
    pytest.importorskip("ray")
    assert on_ray(home, [job(home, "good", steps=3), job(home, "bad", optim__rl=1)]).wait() == 0
    assert {"good 0", "bad 2"} <= set((home / "said.txt").read_text().splitlines())
    for number in (signal.SIGTERM, signal.SIGKILL):
        name = f"endless{number}"
        sweep = on_ray(home, [job(home, name, steps=10**6)])
        wait_until(partial(begun, home, name))
        sweep.send_signal(number)
        assert sweep.wait() == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_until(partial(is_free, home / "runs" / name))
        assert has_saved(home, name) == (number == signal.SIGTERM)


def test_a_launcher_is_chosen_by_its_name_and_set_by_its_keys() -> None:
    asked = sweep_from(["sweep=isoflop", "sweep.launch=slurm", "sweep.launch.sbatch={partition: gpu}"])
    assert asked.launch == Slurm(sbatch={"partition": "gpu"})
    assert isinstance(sweep_from(["sweep=isoflop"]).launch, Local)
    assert sweep_from(["sweep=isoflop", "sweep.launch=ray", "sweep.launch.gpus=0.5"]).launch == Ray(gpus=0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep.launch=slrum"], "did you mean slurm"),
        (["sweep.launch=slurm", "sweep.launch.partition=gpu"], r"unknown key sweep\.launch\.partition"),
        (["sweep.launch=slurm", "sweep.launch.gpus=-1"], "gpus"),
        (["sweep.launch={_target_: llmtrain.sweep.settings.Optimum, n: 1, flops: 1}"], "launch"),
    ],
)
def test_a_mistake_in_a_launcher_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        sweep_from(["sweep=isoflop", *words])
    assert "\n" not in str(refusal.value)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no sbatch.*sweep\.launch=local"):
        Slurm().pool(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmtrain\[slurm\]'"):
        Slurm().pool(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmtrain\[ray\]'"):
        Ray().pool(tmp_path)
