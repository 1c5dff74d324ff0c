"""One run a folder: the lock is refused to others while its holder lives, and free at once when it is dead."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmtrain.errors import StorageError
from llmtrain.lock import RunLock

REPO = Path(__file__).resolve().parents[1]
HOLD = """
import sys
from pathlib import Path
from llmtrain.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_AND_FORK = """
import os, sys
from pathlib import Path
from llmtrain.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, code: str = HOLD) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds the lock of ``folder`` until its input ends, and the line it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


@pytest.mark.fault("F10")
def test_a_second_process_is_refused_and_told_who_has_the_folder(tmp_path):
    with holder(tmp_path) as (process, said):
        assert said == "held"
        with pytest.raises(StorageError) as refusal, RunLock(tmp_path):
            pass
        started = json.loads((tmp_path / ".lock").read_text())["started"]
    for part in (str(tmp_path), f"process {process.pid} ", socket.gethostname(), started):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with RunLock(tmp_path):
        pass


def test_a_second_lock_in_one_process_is_refused_and_leaves_the_first(tmp_path):
    with RunLock(tmp_path):
        for _ in range(2):
            with pytest.raises(StorageError, match=f"process {os.getpid()} "), RunLock(tmp_path):
                pass


@pytest.mark.fault("F10")
def test_a_killed_holder_holds_nothing(tmp_path, caplog):
    with holder(tmp_path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        with RunLock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert caplog.messages == [
        message for message in caplog.messages if "did not end cleanly: taken over" in message
    ]
    assert len(caplog.messages) == 1 and f"process {process.pid} " in caplog.messages[0]


def test_children_of_a_killed_holder_hold_nothing(tmp_path):
    with holder(tmp_path, HOLD_AND_FORK) as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        os.kill(int(child), 0)  # it lives, and reads on
        with RunLock(tmp_path):
            pass


def test_a_child_that_ends_does_not_free_its_parents_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(StorageError), RunLock(tmp_path):
            pass


def test_a_clean_end_leaves_no_trace(tmp_path, caplog):
    for _ in range(2):
        with RunLock(tmp_path / "new" / "run"):
            pass
        assert (tmp_path / "new" / "run" / ".lock").read_text() == ""
    assert not caplog.messages


@pytest.mark.parametrize("key", ["host", "boot_id"])
@pytest.mark.fault("F10")
def test_a_holder_of_another_boot_is_taken_over_and_named(tmp_path, caplog, key):
    with RunLock(tmp_path):
        left = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(left | {key: "another"}))
    with RunLock(tmp_path):
        pass
    assert len(caplog.messages) == 1 and "make sure that it ended" in caplog.messages[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "\0" * 10, '"a"', "[" * 4000])
def test_a_garbled_lock_file_is_no_obstacle(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with RunLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), RunLock(tmp_path / "file" / "run"):
        pass
