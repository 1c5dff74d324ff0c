"""Services that fail, and machines that are short: a run does not wait for the ones, and names what the others lack."""

import contextlib
import ctypes
import http.server
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain import cli, faults
from llmtrain.callbacks.loggers.jsonl import JsonlSink, read
from llmtrain.errors import Retry, UserError
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from processes import forked, read_until
from runs import REPO, metrics, overrides, tiny, weights, write_text

SMALL: dict[str, Any] = {"seq_len": 64, "steps": 4, "eval__samples": 0, "eval__rows": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text that is prepared, and a run that nothing disturbed, as ``whole``."""
    folder = tmp_path_factory.mktemp("services")
    write_text(folder)
    train(tiny(folder, name="whole", **SMALL))
    return folder


# ---- wandb


class Wandb(http.server.BaseHTTPRequestHandler):
    """As much of the service as a client needs to log a run."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/graphql":
            return self.answer({})
        query = json.loads(body)["query"]
        project = {"id": "p", "name": "llmtrain", "entity": {"id": "e", "name": "e"}}
        bucket = {"id": "r", "name": "r", "displayName": "r", "config": "{}", "project": project}
        if "upsertBucket" in query:
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if "createRunFiles" in query:
            return self.answer({"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}})
        self.answer({"data": {"model": None, "viewer": {"id": "u", "entity": "e", "username": "u"}}})

    def answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[Callable[[], None]]:
    """The server in a process of its own; what is given ends it as a machine ends, with all its connections."""
    if (pid := os.fork()) == 0:
        server.serve_forever()
        os._exit(0)
    server.socket.close()  # the child's alone from here on

    def die() -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    try:
        yield die
    finally:
        die()


def command(home: Path, url: str, name: str, **changes: Any) -> subprocess.Popen[str]:
    """train.py in a process of its own, whose way out matters too, with a login at ``url``."""
    env = os.environ | {
        "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4, "HOME": str(home), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    words = overrides(home, name=name, logger="wandb", **(SMALL | changes))
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "train.py", *words], cwd=REPO, env=env, text=True, **out)


def patiently(seconds: float) -> float:
    """``seconds`` of a machine of one's own; more, where others keep its cores busy."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def assert_whole(home: Path, name: str) -> None:
    assert metrics(home / "runs" / name) == metrics(home / "runs" / "whole")
    assert weights(home / "runs" / name, 4) == weights(home / "runs" / "whole", 4)
    assert RunRecord.read(home / "runs" / name / "record.json").status == "finished"


@pytest.mark.slow
@pytest.mark.fault("F34")
@pytest.mark.parametrize("listens", [False, True], ids=["closed port", "black hole"])
def test_wandb_that_is_not_there_costs_ten_seconds_at_most_and_the_run_goes_on_offline(
    home: Path, listens: bool
) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        if listens:
            hole.listen(8)  # and never answers
        name = f"hole-{listens}"
        with command(home, f"http://127.0.0.1:{hole.getsockname()[1]}", name) as run:
            assert run.stdout
            read_until(run.stdout, "parameters")  # the last that is said before the logger is opened
            before = time.monotonic()
            said = run.stdout.readline() + run.stdout.readline()
            assert time.monotonic() - before < patiently(10)
            said += run.stdout.read()
    assert run.returncode == 0, said
    assert "wandb cannot be reached: http://127.0.0.1" in said
    assert f"later: wandb sync {home}/runs/{name}/wandb/offline-run-*" in said
    assert "Traceback" not in said
    assert len(list((home / "runs" / name / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert_whole(home, name)


@pytest.mark.slow
@pytest.mark.fault("F35")
def test_a_wandb_server_that_dies_costs_fifteen_seconds_at_most_and_no_data(home: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wandb)
    with serving(server) as die, command(home, f"http://127.0.0.1:{server.server_port}", "dies") as run:
        assert run.stdout
        read_until(run.stdout, "step 1/4 ")
        die()
        read_until(run.stdout, "step 4/4  validation/")
        before = time.monotonic()
        said = run.stdout.read()
        run.wait()
        assert time.monotonic() - before < patiently(15)
    assert run.returncode == 0, said
    assert "Traceback" not in said
    found = list((home / "runs" / "dies" / "wandb").glob("run-*/run-*.wandb"))
    assert len(found) == 1, "it was online, and its own file is there for a later sync"
    assert_whole(home, "dies")


# ---- our own metrics


@pytest.mark.fault("F36")
def test_the_metrics_of_every_logged_step_survive_a_kill(home: Path) -> None:
    steps = 300

    def logs() -> int:
        sink = JsonlSink(home / "killed.jsonl", from_step=0)
        for step in range(1, steps):
            sink.log({"step": step, "loss": 1.0})
            print(step, flush=True)
        time.sleep(60)
        return 0

    with forked(logs) as child:
        read_until(child.out, str(steps - 100))
        child.signal(signal.SIGKILL)
        said = [steps - 100, *map(int, child.out.read().split())]  # what it said before it died
        os.waitpid(child.pid, 0)
    logged = [row["step"] for row in read(home / "killed.jsonl")]
    assert logged[: said[-1]] == list(range(1, said[-1] + 1))


# ---- no network


def unshare(flags: int) -> None:
    """Leave namespaces of this process, which has one thread, for new ones."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) and libc.unshare(flags | CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000


def permitted(flags: int) -> None:
    """Skip where this system does not let a process have namespaces of its own."""

    def tries() -> int:
        try:
            unshare(flags)
        except OSError:
            return 1
        return 0

    with forked(tries) as child:
        code = child.ended()[0]
    if code:
        pytest.skip("this system gives a process no namespaces of its own (unshare)")


def in_an_empty_network(work: Callable[[], int]) -> tuple[int, str, str]:
    """``work`` without any network, even to this machine; an attempt to reach one, or to listen, ends it with 99."""

    def alone() -> int:
        unshare(CLONE_NEWNET)
        os.environ["HF_HUB_OFFLINE"] = "1"

        def audit(event: str, args: tuple[Any, ...]) -> None:
            if event in {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"}:
                address = args[1] if event != "socket.getaddrinfo" else args[0]
                if (
                    not isinstance(address, str | bytes) or event == "socket.getaddrinfo"
                ):  # no path of this machine
                    print(f"{event}: {address}", flush=True)
                    os._exit(99)

        sys.addaudithook(audit)
        return work()

    with forked(alone) as child:
        return child.ended()


def script(name: str, *words: str) -> int:
    import runpy

    sys.argv = [name, *words]
    try:
        runpy.run_path(str(REPO / "scripts" / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 1


@pytest.mark.slow
@pytest.mark.fault("F37", "F53")
def test_every_command_works_without_a_network_and_neither_connects_nor_listens(home: Path) -> None:
    permitted(CLONE_NEWNET)
    small = SMALL | {"steps": 2, "data__workers": 2, "data__loader_workers": 1, "data__cache": home / "alone"}
    words = overrides(home, name="alone", **small)
    folder = str(home / "runs" / "alone")

    def all_of_them() -> int:
        for work in (
            lambda: script("prepare.py", *words),
            lambda: script("show.py", *words, "rows=1"),
            lambda: cli.main(words),
            lambda: script("generate.py", folder, "--tokens", "3"),
            lambda: script("export.py", folder, str(home / "exported")),
            lambda: script("bench.py", *words, "repeats=1"),
        ):
            if code := work():
                return code
        return 0

    code, out, err = in_an_empty_network(all_of_them)
    assert code == 0, (out[-2000:], err[-2000:])
    assert (home / "runs" / "alone" / "record.json").exists()
    assert (home / "exported" / "model.safetensors").exists()
    assert "tokens/s" in out


@pytest.mark.fault("F53")
def test_the_watch_over_connections_sees_one() -> None:
    permitted(CLONE_NEWNET)
    for work in (
        lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda: socket.socket().bind(("127.0.0.1", 0)),
        lambda: socket.getaddrinfo("example.org", 80),
    ):
        assert in_an_empty_network(lambda work=work: work() and 0)[0] == 99


@pytest.mark.fault("F37")
def test_data_that_a_network_is_needed_for_end_with_the_code_that_says_retry(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [w for w in overrides(home, name="far", **SMALL) if not w.startswith(("data=", "data.source"))]
    assert cli.main([*words, "data=hub", "data.source.path=nobody/nothing"]) == 75
    assert "cannot be reached" in capsys.readouterr().err


# ---- memory


@pytest.fixture
def faulty() -> Iterator[Callable[[str], None]]:
    """What breaks the commands of this test, as LLMTRAIN_FAULT does."""
    yield faults.arm
    faults.arm("")


@pytest.mark.fault("F38")
@pytest.mark.parametrize(("step", "code"), [(0, 2), (2, 75)])
def test_the_end_of_memory_is_one_line_with_an_estimate_and_three_keys(
    home: Path,
    step: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMTRAIN_FAULT", f"oom@step={step}")
    assert cli.main(overrides(home, name=f"full-{step}", **SMALL)) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"out of memory at step {step + 1}" in line
    assert "take about 0.1 MB, the activations of 4 rows x 64 positions about 0.3 MB" in line
    assert "Set micro_rows=2 or trainer.activation_checkpointing=block or trainer.precision=bf16;" in line


@pytest.mark.slow
@pytest.mark.fault("F38")
def test_fewer_rows_at_a_time_are_the_same_run_in_the_same_order(
    home: Path, faulty: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny(home, name="ones", micro_rows=1, **SMALL))
    faulty("oom@step=0,times=2")
    with caplog.at_level(logging.WARNING):
        record = train(tiny(home, name="auto", micro_rows="auto", **SMALL))
    assert record is not None and record.steps == 4
    assert [text in caplog.text for text in ("micro_rows=4 is", "micro_rows=2 is", "micro_rows=1 is")] == [
        True, True, False,
    ]  # fmt: skip
    assert metrics(home / "runs" / "auto") == metrics(home / "runs" / "ones")
    assert weights(home / "runs" / "auto", 4) == weights(home / "runs" / "ones", 4)
    for ours, whole in zip(metrics(home / "runs" / "auto"), metrics(home / "runs" / "whole"), strict=True):
        assert ours == pytest.approx(whole, rel=1e-5)


@pytest.mark.fault("F38")
def test_memory_that_ends_later_goes_on_from_the_newest_checkpoint(
    home: Path, faulty: Callable[[str], None]
) -> None:
    faulty("oom@step=3")
    train(tiny(home, name="later", micro_rows="auto", checkpoint__every=2, **SMALL))
    found, whole = metrics(home / "runs" / "later"), metrics(home / "runs" / "whole")
    assert [row["step"] for row in found] == [row["step"] for row in whole]
    assert found[:2] == whole[:2]
    for ours, theirs in zip(found, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.fault("F38")
def test_what_cannot_be_taken_apart_says_so(home: Path, faulty: Callable[[str], None]) -> None:
    faulty("oom@step=0,times=9")
    with pytest.raises(UserError, match="out of memory at step 1") as end:
        train(tiny(home, name="one", micro_rows="auto", **SMALL))
    assert "micro_rows=" not in str(end.value)  # there are none fewer than one
    with pytest.raises(UserError, match="micro_rows=auto is for one process"):
        train(tiny(home, name="ranks", micro_rows="auto", trainer="ddp", **SMALL))


# ---- limits of the machine


def limited(what: int, limit: int, work: Callable[[], int]) -> tuple[int, str, str]:
    def under_limit() -> int:
        resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))
        return work()

    with forked(under_limit) as child:
        return child.ended()


def used() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def assert_one_line(answer: tuple[int, str, str], code: int, *said: str) -> None:
    assert answer[0] == code, answer
    lines = [line for line in answer[2].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in answer[2], answer[2]
    assert all(text in lines[0] for text in said), lines


@pytest.mark.fault("F39")
def test_too_little_address_space_is_one_line(home: Path) -> None:
    words = overrides(home, name="space", **(SMALL | {"model__d_model": 4096, "batch_rows": 64}))
    answer = limited(resource.RLIMIT_AS, used() + 300_000_000, lambda: cli.main(words))
    assert_one_line(answer, 2, "out of memory", "allowed by ulimit -v")


@pytest.mark.fault("F39")
def test_too_few_open_files_is_one_line(home: Path) -> None:
    words = overrides(home, name="files", **(SMALL | {"data__loader_workers": 4}))
    free = sorted(set(range(200)) - set(map(int, os.listdir("/proc/self/fd"))))
    answer = limited(resource.RLIMIT_NOFILE, free[10], lambda: cli.main(words))
    assert_one_line(answer, 5, "too many open files", "ulimit -n")


@pytest.mark.fault("F39")
@pytest.mark.parametrize("size", ["4k", "64k"], ids=["for semaphores", "for batches"])
def test_full_shared_memory_is_one_line(home: Path, size: str) -> None:
    permitted(CLONE_NEWNS)
    words = overrides(home, name=f"shm-{size}", **(SMALL | {"data__loader_workers": 1, "batch_rows": 64}))

    def without_shared_memory() -> int:
        unshare(CLONE_NEWNS)
        for mount in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]):
            subprocess.run(["mount", *mount], check=True)
        return cli.main(words)

    with forked(without_shared_memory) as child:
        answer = child.ended()
    assert_one_line(answer, 5, "shared memory", "data.loader_workers=0")


# ---- clocks and names


@pytest.mark.fault("F40")
def test_a_clock_that_is_set_back_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))  # an hour back each time that it is read
    record = train(tiny(home, name="back", checkpoint__every=2, **SMALL))
    assert record is not None
    assert 0 < record.wall_seconds < 300 and record.tokens_per_second > 0
    assert_whole(home, "back")


@pytest.mark.slow
@pytest.mark.fault("F40")
def test_runs_of_one_moment_have_folders_of_their_own_or_are_refused(home: Path) -> None:
    runs = [tiny(home, seed=seed) for seed in range(50)]
    assert len({run.folder for run in runs}) == 50
    from llmtrain.lock import RunLock

    with RunLock(runs[0].folder), pytest.raises(UserError, match="is in use by process"):
        train(tiny(home, seed=0))


@pytest.mark.fault("F40")
def test_the_id_of_a_run_at_wandb_is_its_own_and_stays(tmp_path: Path) -> None:
    from llmtrain.callbacks.loggers.wandb import _id

    folders = [tmp_path / place / "same-name" for place in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    one, two = map(_id, folders)
    assert one != two and _id(folders[0]) == one


def test_the_code_of_a_retry_is_that_of_sysexits() -> None:
    assert Retry("x").exit_code == os.EX_TEMPFAIL
