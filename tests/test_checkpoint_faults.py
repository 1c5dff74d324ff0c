"""Whatever is damaged, killed or full, a checkpoint is there whole or not at all."""

import errno
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

from llmtrain.checkpoint import State, find, load, newest, prune, save
from llmtrain.errors import StorageError
from tests.checkpoints import DAMAGES, FILES, a_state, assert_equal, die_at, in_a_child


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.fault("F6")
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_older_one_found(tmp_path, caplog, file, damage):
    older = save(tmp_path, 1, a_state(1))
    damaged = save(tmp_path, 2, a_state(2))
    assert sorted(path.name for path in damaged.iterdir()) == FILES
    DAMAGES[damage](damaged / file)
    with pytest.raises(StorageError, match=file):
        load(damaged)
    assert newest(tmp_path) == older and damaged.exists()
    caplog.clear()
    assert find(tmp_path) == older
    assert not damaged.exists() and damaged.with_name("step-00000002.corrupt").is_dir()
    assert len(caplog.messages) == 1 and file in caplog.messages[0] and "step-00000002" in caplog.messages[0]
    assert_equal(load(older), a_state(1))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.fault("F6")
def test_any_flipped_bit_is_seen(tmp_path, file):
    path = (
        save(tmp_path, 1, State({"model": {"w": torch.ones(2)}, "optimizer": {}, "rng": {}}, {"step": 1}))
        / file
    )
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        byte = bytes([whole[bit // 8] ^ (1 << bit % 8)])
        path.write_bytes(whole[: bit // 8] + byte + whole[bit // 8 + 1 :])
        assert newest(tmp_path) is None, bit
    path.write_bytes(whole)
    assert newest(tmp_path) is not None


@pytest.mark.fault("F6")
def test_when_all_are_damaged_none_is_found_and_it_is_said(tmp_path, caplog):
    for step in (1, 2):
        (save(tmp_path, step, a_state(step)) / "rng.safetensors").unlink()
    assert find(tmp_path) is None
    assert "none of its 2 checkpoints is valid" in caplog.messages[-1]


def test_two_damaged_checkpoints_of_one_step_are_both_kept(tmp_path):
    for _ in range(2):
        (save(tmp_path, 1, a_state()) / "state.json").unlink()
        assert find(tmp_path) is None
    assert len(list((tmp_path / "checkpoints").glob("*.corrupt*"))) == 2


@pytest.mark.fault("F7")
def test_no_pointer_is_trusted(tmp_path):
    save(tmp_path, 1, a_state())
    last = save(tmp_path, 20, a_state())
    (tmp_path / "checkpoints" / "latest").write_text("step-00000001")
    os.utime(tmp_path / "checkpoints" / "step-00000001")
    assert find(tmp_path) == newest(tmp_path) == last


def test_a_step_asked_for_is_found_or_those_there_are_listed(tmp_path):
    with pytest.raises(StorageError, match=r"step 3: there is none"):
        find(tmp_path, step=3)
    first = save(tmp_path, 10, a_state())
    (save(tmp_path, 20, a_state()) / "state.json").write_text("{}")
    assert find(tmp_path, step=10) == first
    with pytest.raises(StorageError, match="no checkpoint of step 15: there are 10, 20"):
        find(tmp_path, step=15)
    with pytest.raises(StorageError, match=r"state.json"):
        find(tmp_path, step=20)


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert find(tmp_path) is None and newest(tmp_path / "not there") is None


@pytest.mark.fault("F2")
def test_a_kill_at_any_point_of_a_save_leaves_a_checkpoint_that_loads(tmp_path):
    points: list[str] = []
    save(tmp_path / "dry", 2, a_state(2), on_write=points.append)
    assert len(points) > 2 * len(FILES)
    for n in range(len(points)):
        run = tmp_path / str(n)
        save(run, 1, a_state(1))
        code, _ = in_a_child(lambda run=run, n=n: save(run, 2, a_state(2), on_write=die_at(n)))
        assert code == -signal.SIGKILL, points[n]
        survivor = find(run)
        assert survivor is not None
        assert_equal(load(survivor), a_state(2 if "rename" in points[n] else 1))
        assert not list((run / "checkpoints").glob("*.tmp")) and not list(
            (run / "checkpoints").glob("*.corrupt")
        )
        assert_equal(load(save(run, 2, a_state(2))), a_state(2))


@pytest.mark.fault("F8")
def test_a_kill_at_any_point_of_a_deletion_leaves_only_whole_checkpoints(tmp_path, caplog):
    changes = {"os.rename", "os.remove", "os.rmdir"}
    killed = 0
    while True:
        run = tmp_path / str(killed)
        for step in (1, 2, 3):
            save(run, step, a_state(step))

        def die_inside(run: Path = run, n: int = killed) -> None:
            die = die_at(n)
            sys.addaudithook(lambda event, args: die(event) if event in changes else None)
            prune(run, keep_last=2)

        code, said = in_a_child(die_inside)
        if code == 0:
            assert said == "None"
            break
        killed += 1
        assert_equal(load(find(run)), a_state(3))
        prune(run, keep_last=2)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
            "step-00000002",
            "step-00000003",
        ]
    assert killed == 1 + len(FILES) + 1  # the rename, every file, the folder
    assert not any("damaged" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO], ids=errno.errorcode.get
)
@pytest.mark.fault("F4")
def test_a_disk_that_refuses_leaves_the_older_checkpoint_and_says_what_it_needs(tmp_path, code):
    points: list[str] = []
    save(tmp_path / "dry", 2, a_state(2), on_write=points.append)
    older = save(tmp_path, 1, a_state(1))
    for n in range(points.index("all synced") + 1):
        calls = iter(range(n))

        def refuse(point: str, calls=calls) -> None:
            if next(calls, None) is None:
                raise OSError(code, os.strerror(code))

        with pytest.raises(StorageError) as refusal:
            save(tmp_path, 2, a_state(2), on_write=refuse)
        message = str(refusal.value)
        assert "\n" not in message and "step-00000002" in message and os.strerror(code) in message
        assert "kB, " in message and "are free" in message
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [older.name]
    assert_equal(load(find(tmp_path)), a_state(1))


@pytest.mark.fault("F4")
def test_a_limit_on_file_size_is_a_refusal_and_no_crash(tmp_path):
    older = save(tmp_path, 1, a_state(1))
    large = State({"model": {"w": torch.zeros(1 << 18)}}, {})

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        save(tmp_path, 2, large)

    code, said = in_a_child(limited)
    assert code == 0 and said.startswith("StorageError") and "File too large" in said and "1.1 MB" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [older.name]


@pytest.mark.fault("F4")
def test_a_full_file_system_is_a_refusal_and_no_crash(tmp_path):
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=2M tmpfs {tmp_path} 2> /dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        older = save(tmp_path, 1, a_state(1))
        with pytest.raises(StorageError, match="No space left on device"):
            save(tmp_path, 2, State({"model": {"w": torch.zeros(1 << 20)}}, {}))
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [older.name]
        assert_equal(load(find(tmp_path)), a_state(1))
    finally:
        os.system(f"umount {tmp_path}")


def test_a_run_folder_that_is_gone_or_no_folder_is_a_refusal(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not saved"):
        save(tmp_path / "file", 1, a_state())
