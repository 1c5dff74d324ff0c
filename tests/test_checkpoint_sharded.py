"""Tensors spread over ranks in any layout come back in any other, and each rank reads what it needs."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmtrain.checkpoint import Shard, State, estimate_bytes, find, load, places, save, specs
from llmtrain.checkpoint.files import Damaged, StoredReader
from llmtrain.errors import ConfigError
from llmtrain.place import Place, cut, everything
from tests.checkpoints import a_state, assert_equal, flipped
from tests.test_checkpoint_ranks import on_ranks
from tests.test_checkpoint_trust import reseal

WHOLE = torch.arange(7 * 4.0).reshape(7, 4)


def rows(*ranges: tuple[int, int]) -> Place:
    return Place((7, 4), (tuple(ranges), ((0, 4),)))


# of each rank its part: by rows, unevenly; by columns; on a grid; part by part of a fused matrix; one with nothing
LAYOUTS: dict[str, list[Place]] = {
    "whole": [everything((7, 4))],
    "rows": [rows((0, 4)), rows((4, 7))],
    "columns": [Place((7, 4), (((0, 7),), ((i, i + 1),))) for i in range(4)],
    "grid": [Place((7, 4), ((r,), (c,))) for r in ((0, 3), (3, 7)) for c in ((0, 2), (2, 4))],
    "fused": [rows((0, 2), (4, 5)), rows((2, 4), (5, 7))],
    "more ranks than rows": [rows((i, i + 1)) for i in range(7)] + [Place((7, 4), ((), ((0, 4),)))],
}
PAIRS = list(itertools.product(LAYOUTS, LAYOUTS))


def shard_of(whole: Tensor, place: Place, *, first: bool = True) -> Shard:
    return Shard(cut(whole, place).clone(), place, first)


def state_on(rank: int, layout: str) -> State:
    """A matrix and its moment lie in parts, tied under a second name; a bias is the same everywhere."""
    place = LAYOUTS[layout][rank]
    weight = shard_of(WHOLE, place)
    moment = shard_of(-WHOLE, place)
    model = {"embed": weight, "head": weight, "bias": torch.ones(3)}
    return State({"model": model, "optimizer": {"moment": moment}}, {"step": 3})


def saved(folder: Path, layout: str) -> Path:
    world = len(LAYOUTS[layout])

    def act(rank: int, barrier: Callable[[], None]) -> Path:
        return save(folder, 3, state_on(rank, layout), rank=rank, world=world, barrier=barrier)

    found = on_ranks(world, act)
    assert set(found) == {find(folder)}
    return find(folder)


def loaded(path: Path, rank: int, layout: str) -> State:
    own = state_on(rank, layout).tensors
    return load(path, expect=specs(own), places=places(own), rank=rank, world=len(LAYOUTS[layout]))


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_any_layout_comes_back_in_any_other(tmp_path, before, after):
    path = saved(tmp_path, before)
    for rank, place in enumerate(LAYOUTS[after]):
        state = loaded(path, rank, after)
        assert state.tensors["model"]["embed"].equal(cut(WHOLE, place))
        assert state.tensors["model"]["head"] is state.tensors["model"]["embed"]
        assert state.tensors["optimizer"]["moment"].equal(-cut(WHOLE, place))
        assert state.tensors["model"]["bias"].equal(torch.ones(3))
    whole = load(path)
    assert whole.tensors["model"]["embed"].equal(WHOLE) and whole.values == {"step": 3}


def test_what_several_ranks_hold_alike_is_written_once(tmp_path):
    def act(rank: int, barrier: Callable[[], None]) -> Path:
        state = State({"model": {"x": shard_of(WHOLE, LAYOUTS["rows"][rank // 2], first=rank % 2 == 0)}}, {})
        return save(tmp_path, 1, state, rank=rank, world=4, barrier=barrier)

    on_ranks(4, act)
    files = sorted(path.name for path in find(tmp_path).glob("*.safetensors"))
    assert files == ["model-00000-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    assert load(find(tmp_path)).tensors["model"]["x"].equal(WHOLE)


def test_a_rank_reads_its_part_alone(tmp_path, monkeypatch):
    path = saved(tmp_path, "rows")
    read: list[str] = []
    original = StoredReader.__init__
    monkeypatch.setattr(
        StoredReader,
        "__init__",
        lambda self, path, stored: (read.append(path.name), original(self, path, stored))[1],
    )
    loaded(path, 1, "rows")
    assert sorted(name for name in read if name.startswith("optimizer")) == [
        "optimizer-00001-of-00002.safetensors"
    ]


def test_a_flipped_bit_is_found_by_the_rank_whose_part_it_is_in_and_by_the_search(tmp_path):
    path = saved(tmp_path, "rows")
    file = path / "optimizer-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert loaded(path, 0, "rows").tensors["optimizer"]["moment"].equal(-WHOLE[:4])
    with pytest.raises(
        Damaged, match=r"optimizer-00001-of-00002.safetensors is not what was written: .* moment"
    ):
        loaded(path, 1, "rows")
    assert find(tmp_path) is None


def test_a_part_that_is_missing_is_damage_and_takes_no_memory(tmp_path):
    path = saved(tmp_path, "rows")
    reseal(path, lambda manifest: manifest["contents"]["groups"]["optimizer"].pop())
    with pytest.raises(Damaged, match="hold 16 of 28 elements of moment"):
        load(path)


@pytest.mark.parametrize(
    "place",
    [
        [[7, 4], [[[0, 4]], [[0, 5]]]],
        [[7, 4], [[[0, 4]]]],
        [[7, 4], [[[4, 0]], [[0, 4]]]],
        [[10**30, 4], [[[0, 4]], [[0, 4]]]],
    ],
)
def test_a_place_that_cannot_be_is_damage(tmp_path, place):
    path = saved(tmp_path, "rows")

    def change(manifest: dict) -> None:
        manifest["contents"]["groups"]["optimizer"][0]["tensors"]["moment"]["place"] = place

    reseal(path, change)
    with pytest.raises(Damaged):
        load(path)


def test_a_tensor_said_to_be_vast_is_not_made(tmp_path):
    """Else a small file could take all memory."""
    path = saved(tmp_path, "rows")

    def change(manifest: dict) -> None:
        for part in manifest["contents"]["groups"]["optimizer"]:
            (begin, end), columns = part["tensors"]["moment"]["place"][1][0][0], [[0, 4]]
            part["tensors"]["moment"]["place"] = [[1 << 50, 4], [[[begin, end]], columns]]

    reseal(path, change)
    with pytest.raises(Damaged, match="hold 28 of 4503599627370496 elements of moment"):
        load(path)


def test_another_shape_is_refused_whatever_the_parts(tmp_path):
    path = saved(tmp_path, "rows")
    with pytest.raises(
        ConfigError, match=r"moment is \(7, 4\) float32 in the checkpoint and \(7, 5\) float32"
    ):
        load(path, expect={"optimizer": {"moment": ((7, 5), torch.float32)}})


def test_the_estimate_is_of_all_ranks_together(tmp_path):
    path = saved(tmp_path, "grid")
    taken = sum(file.stat().st_size for file in path.iterdir())
    estimated = {estimate_bytes(state_on(rank, "grid")) for rank in range(4)}
    assert len(estimated) == 1 and estimated.pop() > sum(x.nbytes for x in (WHOLE, WHOLE, torch.ones(3)))
    assert taken < 4 * max(estimate_bytes(state_on(0, "grid")), 1)


def test_the_first_version_of_the_format_is_read(tmp_path):
    """It had neither places nor a hash for each tensor: the whole file is hashed instead."""
    path = save(tmp_path, 1, a_state())

    def change(manifest: dict) -> None:
        manifest["version"] = 1
        for parts in manifest["contents"]["groups"].values():
            for stored in (stored for part in parts for stored in part["tensors"].values()):
                del stored["hash"]

    reseal(path, change)
    assert_equal(load(path), a_state())
    half = {"model": {"embed": Place((5, 3), (((2, 5),), ((0, 3),)))}}
    assert load(path, places=half).tensors["model"]["embed"].equal(a_state().tensors["model"]["embed"][2:])
    file = path / "model.safetensors"
    file.write_bytes(flipped(file.read_bytes()))
    with pytest.raises(Damaged):
        load(path, places=half)


def test_a_snapshot_of_parts_shares_no_memory(tmp_path):
    from llmtrain.checkpoint import Saver

    barriers = threading.Barrier(2, timeout=20)

    def act(rank: int, barrier: Callable[[], None]) -> None:
        state = state_on(rank, "rows")
        with Saver(tmp_path, keep_last=2, rank=rank, world=2, barrier=barrier) as saver:
            saver.save(3, state)
            state.tensors["model"]["embed"].part.zero_()
            barriers.wait()

    assert on_ranks(2, act) == [None, None]
    assert load(find(tmp_path)).tensors["model"]["embed"].equal(WHOLE)
