"""Services that fail: a run does not wait for them, loses nothing, and needs no network of its own."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain import cli
from llmtrain.callbacks.loggers.jsonl import JsonlSink, read
from llmtrain.errors import Retry
from llmtrain.pretrain import train
from namespaces import CLONE_NEWNET, permitted, unshare
from processes import forked, read_until
from runs import REPO, overrides, tiny, write_text
from undisturbed import SMALL, assert_whole


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


def test_the_code_of_a_retry_is_that_of_sysexits() -> None:
    assert Retry("x").exit_code == os.EX_TEMPFAIL
