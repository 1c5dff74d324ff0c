"""Disks that are full, folders that vanish and checkpoints that are damaged: nothing that was saved is lost."""

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from checkpoints import DAMAGES
from llmtrain.compose import compose
from processes import read_until
from runs import overrides, write_text
from struck import CHANGES, assert_whole, command, started, the_error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that nothing happened to is called whole."""
    folder = tmp_path_factory.mktemp("storage")
    write_text(folder)
    compose(overrides(folder, **CHANGES))  # what forks need not compose again
    assert command(folder, "whole")[0] == 0
    return folder


@pytest.mark.fault("F4")
@pytest.mark.parametrize("fault", ["enospc@save=2", "edquot@write=60", "efbig@write=70"])
def test_a_full_disk_stops_a_run_with_what_is_missing_and_leaves_the_older_checkpoint(
    home: Path, fault: str
) -> None:
    name = fault.replace("=", "-")
    code, _, err = command(home, name, fault)
    error = the_error(err)
    assert code == 5 and re.search(r"step-0000000\d: the checkpoint was not saved: ", error)
    assert re.search(r"it needs [\d.]+ kB, [\d.]+ .B are free", error)
    left = [path.name for path in (home / "runs" / name / "checkpoints").iterdir()]
    assert left and all(re.fullmatch(r"step-\d{8}", path) for path in left)
    assert command(home, name)[0] == 0
    assert_whole(home, name)


@pytest.mark.fault("F4", "F17")
def test_a_save_that_fails_while_the_run_fails_is_told_beside_the_first_reason(home: Path) -> None:
    """A slow save that meets a full disk, and meanwhile a step that is no number: the latter ended the run."""
    code, _, err = command(
        home, "both", "slow@write=1,seconds=2;enospc@write=3;nan@step=4", checkpoint__every=4
    )
    assert code == 4 and "step 5" in the_error(err)
    assert "the checkpoint was not saved" in err


@pytest.mark.fault("F4")
def test_a_run_may_go_on_without_a_checkpoint_but_not_end_without_its_last(home: Path) -> None:
    code, _, err = command(home, "continue", "enospc@save=2", checkpoint__on_disk_full="continue")
    assert code == 0 and err.count("training goes on without it") == 1
    assert_whole(home, "continue")
    code, _, err = command(
        home,
        "last",
        "enospc@save=*",
        checkpoint__on_disk_full="continue",
        checkpoint__every=6,
        eval__every="null",
    )
    assert code == 5 and "step-00000012: the checkpoint was not saved" in the_error(err)
    assert command(home, "last", eval__every=5)[0] == 0
    assert_whole(home, "last")


@pytest.mark.fault("F4", "F9")
def test_a_run_may_wait_for_room_with_its_state_in_memory_and_only_so_long(home: Path) -> None:
    code, _, err = command(home, "wait", "enospc@save=*,times=3", checkpoint__on_disk_full="wait")
    assert code == 0 and err.count("trying again in") == 3
    assert_whole(home, "wait")
    wait = {"checkpoint__on_disk_full": "wait", "checkpoint__wait_seconds": 0.5}
    code, _, err = command(home, "patience", "erofs@save=*", **wait)
    assert code == 5 and "Read-only file system" in the_error(err) and err.count("trying again in") == 3


@pytest.mark.fault("F4", "F5")
@pytest.mark.parametrize("policy", ["stop", "wait"])
def test_a_small_disk_that_fills_up_and_is_emptied_again(home: Path, tmp_path: Path, policy: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1536k tmpfs {small} 2> /dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        ballast, changes = small / "ballast", {"runs": small, "checkpoint__on_disk_full": policy}
        ballast.write_bytes(bytes(1_400_000))
        code, _, err = command(home, "small", **changes)
        assert code == 5 and "are free, and checkpoints need" in the_error(err)
        ballast.unlink()
        with started(home, "small", "slow@step=*,seconds=0.1", **changes) as child:
            read_until(child.out, "step 4/")
            with contextlib.suppress(OSError):
                ballast.write_bytes(bytes(2_000_000))
            if policy == "wait":
                read_until(child.err, "trying again in")
                ballast.unlink()
            code, _, err = child.ended()
        if policy == "stop":
            assert code == 5 and "No space left on device" in the_error(err)
            ballast.unlink()
            assert command(home, "small", **changes)[0] == 0
        assert code == (5 if policy == "stop" else 0)
        shutil.copytree(small / "small", home / "runs" / f"small-{policy}")
    finally:
        os.system(f"umount {small}")
    assert_whole(home, f"small-{policy}")


@pytest.mark.fault("F9")
@pytest.mark.parametrize("policy", ["stop", "wait"])
def test_a_folder_that_vanishes_is_missed_and_may_come_back(home: Path, policy: str) -> None:
    folder = home / "runs" / f"vanished-{policy}"
    away = folder.with_name("away")
    slow = "slow@step=*,seconds=0.1"
    with started(home, folder.name, slow, checkpoint__on_disk_full=policy) as child:
        read_until(child.out, "step 4/")
        folder.rename(away)
        if policy == "wait":
            read_until(child.err, "the folder is gone")
            away.rename(folder)
        code, _, err = child.ended()
    if policy == "stop":
        assert code == 5 and "the folder is gone" in the_error(err) and not folder.exists()
        away.rename(folder)
        assert command(home, folder.name)[0] == 0
    assert_whole(home, folder.name)


@pytest.mark.fault("F6", "F7")
@pytest.mark.parametrize("damage", ["truncated to half", "one bit flipped", "deleted"])
def test_a_damaged_checkpoint_is_named_set_aside_and_done_without(home: Path, damage: str) -> None:
    name = damage.replace(" ", "-")
    assert command(home, name, "kill@save=3")[0] == -signal.SIGKILL
    checkpoints = home / "runs" / name / "checkpoints"
    (checkpoints / "latest").write_text("step-00000006")
    DAMAGES[damage](checkpoints / "step-00000006" / "optimizer.safetensors")
    code, _, err = command(home, name)
    assert code == 0 and "continuing at step 3" in err
    assert re.search(
        r"step-00000006 is damaged \(optimizer.safetensors .*\): set aside as step-00000006.corrupt", err
    )
    assert (checkpoints / "step-00000006.corrupt").is_dir()
    assert_whole(home, name)
