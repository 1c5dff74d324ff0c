"""A checkpoint is written by many ranks together, or beside training, as if by one that does nothing else."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmtrain.checkpoint import Saver, State, find, load, save, specs
from llmtrain.errors import ConfigError, StorageError
from tests.checkpoints import a_state, assert_equal


def on_ranks(world: int, act: Callable[[int, Callable[[], None]], object]) -> list[object]:
    """What ``act(rank, barrier)`` returned or raised on each of ``world`` threads."""
    barrier = threading.Barrier(world, timeout=20)
    results: list[object] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = act(rank, lambda: (barrier.wait(), None)[1])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_rank_gets_its_own_groups_back_and_all_share_the_others(tmp_path):
    paths = on_ranks(
        3, lambda rank, barrier: save(tmp_path, 1, state_of(rank), rank=rank, world=3, barrier=barrier)
    )
    assert set(paths) == {find(tmp_path)}
    path = find(tmp_path)
    assert sorted(file.name for file in path.glob("*rng*")) == [
        f"rng-{rank:05d}-of-00003.safetensors" for rank in range(3)
    ]
    for rank in range(3):
        state = load(path, rank=rank, world=3, expect=specs(state_of(rank).tensors))
        assert state.values == state_of(0).values
        assert state.tensors["model"]["embed"].equal(state_of(0).tensors["model"]["embed"])
        assert state.tensors["rng"]["torch"].equal(state_of(rank).tensors["rng"]["torch"])
    assert set(load(path).tensors) == {"model", "optimizer"}
    with pytest.raises(ConfigError, match="no rng for this rank: 3 ranks saved it and 1 load it"):
        load(path, expect=specs(state_of(0).tensors))


def state_of(rank: int) -> State:
    own = a_state(rank)
    return State(a_state(0).tensors | {"rng": own.tensors["rng"]}, a_state(0).values)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.fault("F4")
def test_when_one_rank_fails_all_say_so_none_waits_and_the_older_checkpoint_stays(tmp_path, failing):
    older = save(tmp_path, 1, a_state(1))

    def act(rank: int, barrier: Callable[[], None]) -> Path:
        def on_write(point: str) -> None:
            if rank == failing and point.startswith("rng-"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return save(tmp_path, 2, state_of(rank), rank=rank, world=2, barrier=barrier, on_write=on_write)

    results = on_ranks(2, act)
    assert all(isinstance(result, StorageError) for result in results)
    assert "No space left" in str(results[failing]) and "failed: see its message" in str(results[1 - failing])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [older.name]


def test_ranks_without_a_barrier_are_refused(tmp_path):
    with pytest.raises(ValueError, match="barrier"):
        save(tmp_path, 1, a_state(), world=2)


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    state = a_state(1)
    with Saver(tmp_path, keep_last=2) as saver:
        for step in (1, 2, 3):
            saver.save(step, state)
            state.tensors["model"]["embed"].add_(1)
            state.values["names"].append(step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000003",
    ]
    second, third = (load(find(tmp_path, step=step)) for step in (2, 3))
    assert second.values["names"][3:] == [1] and third.values["names"][3:] == [1, 2]
    original = a_state(1).tensors["model"]["embed"]
    assert second.tensors["model"]["embed"].equal(original + 1)
    assert third.tensors["model"]["embed"].equal(original + 1 + 1)


def test_a_snapshot_ties_what_is_tied_and_no_more(tmp_path):
    weight = torch.randn(4)
    with Saver(tmp_path, keep_last=3) as saver:
        saver.save(1, State({"model": {"a": weight, "b": weight}}, {}))
        saver.save(2, State({"model": {"a": weight, "b": weight + 1}}, {}))
        saver.save(3, State({"model": {"a": weight + 2, "b": torch.ones(2, dtype=torch.int64)}}, {}))
    first, second, third = (load(find(tmp_path, step=step)).tensors["model"] for step in (1, 2, 3))
    assert first["a"] is first["b"]
    assert second["a"].equal(weight) and second["b"].equal(weight + 1)
    assert third["a"].equal(weight + 2) and third["b"].dtype == torch.int64


def test_a_failure_in_the_background_is_raised_once_by_the_next_call(tmp_path):
    run = tmp_path / "run"
    run.write_text("in the way")
    with Saver(run, keep_last=1) as saver:
        saver.save(1, a_state())
        with pytest.raises(StorageError, match="step-00000001"):
            saver.save(2, a_state())
        run.unlink()
        saver.save(3, a_state(3))
        saver.wait()
        saver.wait()
    assert_equal(load(find(run)), a_state(3))


def test_a_failure_at_the_end_is_raised_by_the_end_and_hides_no_other(tmp_path, caplog):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(StorageError, match="step-00000001"), Saver(tmp_path / "run", keep_last=1) as saver:
        saver.save(1, a_state())
    with pytest.raises(KeyError), Saver(tmp_path / "run", keep_last=1) as saver:
        saver.save(1, a_state())
        raise KeyError("the cause")
    assert any(
        record.levelno == logging.ERROR and "step-00000001" in record.message for record in caplog.records
    )
