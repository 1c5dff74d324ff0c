"""Faults F24 to F28: shards, corpora and rows that are not what they should be are named; ranks share them all."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from llmtrain.data.cursor import Cursor
from llmtrain.data.examples import RankRows
from llmtrain.data.sources.text import TextFiles
from llmtrain.pretrain import train
from refusals import refused
from runs import metrics, overrides, stopped, tiny, weights, write_text

# --- F24: shards


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text that is prepared, and a run of 4 steps that was stopped after 2."""
    folder = tmp_path_factory.mktemp("data")
    write_text(folder)
    assert stopped(tiny(folder, name="stopped", steps=4), 2) == 143
    return folder


def manifest_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def content(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def of_one_writing(folder: Path) -> None:
    """Offsets that lead elsewhere, under a manifest that vouches for them."""
    from llmtrain.data.shard_writer import checksum

    offsets = np.fromfile(folder / "offsets.bin", np.uint64)
    offsets[1:-1] += 1
    offsets.tofile(folder / "offsets.bin")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["offsets.bin"]["xxh3"] = checksum(folder / "offsets.bin")
    (folder / "manifest.json").write_text(json.dumps(manifest))


SHARD_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zero length": (content("tokens.bin", lambda _: b""), r"tokens\.bin has 0 bytes, not"),
    "odd byte": (content("tokens.bin", lambda b: b + b"x"), r"tokens\.bin has \d+ bytes, not"),
    "truncated": (content("tokens.bin", lambda b: b[: len(b) // 4 * 2]), r"tokens\.bin has \d+ bytes, not"),
    "flipped": (
        content("tokens.bin", lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:]),
        r"tokens\.bin .*checksum",
    ),
    "wrong dtype": (manifest_with(dtype="uint32"), r"manifest\.json: its counts, dtype and file sizes"),
    "unknown dtype": (manifest_with(dtype="int8"), r"manifest\.json is damaged"),
    "id beyond the vocabulary": (
        manifest_with(vocab_size=100),
        r"tokens\.bin has id \d+, outside its vocabulary",
    ),
    "another tokenizer": (manifest_with(meta={"tokenizer_hash": "0"}), r"another tokenizer .*hash 0"),
    "another index": (of_one_writing, r"offsets\.bin does not lead to the documents"),
    "index of another length": (content("offsets.bin", lambda b: b[:-8]), r"offsets\.bin has \d+ bytes"),
    "magic": (manifest_with(format="shards"), r"manifest\.json is not of the format"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json cannot be read"),
}


@pytest.mark.fault("F24")
@pytest.mark.parametrize("side", ["train", "validation"])
@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_a_damaged_shard_is_named_before_the_first_step(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture, fault: str, side: str
) -> None:
    damage, told = SHARD_FAULTS[fault]
    shutil.copytree(home / "cache", tmp_path / "cache")
    (shards,) = tmp_path.glob(f"cache/*/corpus/{side}")
    damage(shards)
    said = refused(capsys, *overrides(home, name=tmp_path.name, data__cache=tmp_path / "cache"))
    assert re.search(told, said)
    assert f"delete {shards} and prepare it again" in said
    assert not (home / "runs" / tmp_path.name / "metrics.jsonl").exists()


# --- F25: another corpus than the one that was saved with


@pytest.fixture
def resumable(home: Path) -> Iterator[Path]:
    """A folder with the run that was stopped, and its text, which may be changed."""
    text = home / "text.txt"
    before = text.read_bytes()
    shutil.copytree(home / "runs" / "stopped", home / "runs" / "kept")
    yield home
    text.write_bytes(before)
    shutil.rmtree(home / "runs" / "stopped")
    (home / "runs" / "kept").rename(home / "runs" / "stopped")


def swapped(text: bytes) -> bytes:
    one, other, *rest = text.splitlines(keepends=True)
    return b"".join([other, one, *rest])


@pytest.mark.fault("F25")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text + b"one more line\n", r"40,\d+ bytes before, 40,\d+ now"),
        (lambda text: text[:-1000], r"40,\d+ bytes before, 39,\d+ now"),
        (swapped, r"40,\d+ bytes as before"),
    ],
    ids=["appended", "truncated", "reordered"],
)
def test_a_changed_corpus_is_refused_by_what_changed(
    resumable: Path, capsys: pytest.CaptureFixture, change: Callable[[bytes], bytes], told: str
) -> None:
    text = resumable / "text.txt"
    text.write_bytes(change(text.read_bytes()))
    said = refused(capsys, *overrides(resumable, name="stopped", steps=4))
    assert "was made with another corpus" in said and f"{text} has other content" in said
    assert re.search(told, said)


@pytest.mark.fault("F25")
def test_a_corpus_that_was_only_touched_is_gone_on_with(resumable: Path) -> None:
    os.utime(resumable / "text.txt", (1, 1))
    assert train(tiny(resumable, name="stopped", steps=4)) is not None
    assert train(tiny(resumable, name="whole", steps=4)) is not None
    runs = resumable / "runs"
    assert metrics(runs / "stopped") == metrics(runs / "whole")
    assert weights(runs / "stopped", 4) == weights(runs / "whole", 4)


@pytest.mark.fault("F25")
def test_files_that_came_went_or_changed_places_are_named(tmp_path: Path) -> None:
    from llmtrain.data.digests import Digests, changes

    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    digests = Digests(tmp_path / "digests.json")
    before = TextFiles(paths=str(folder)).inventory(digests)
    (folder / "b.txt").unlink()
    (folder / "d.txt").write_text("d")
    assert changes(before, TextFiles(paths=str(folder)).inventory(digests)) == [
        f"{folder}/b.txt is gone",
        f"{folder}/d.txt is new",
    ]
    (folder / "d.txt").unlink()
    (folder / "e.txt").write_text("b")  # the same text, read after c
    after = TextFiles(paths=str(folder)).inventory(digests)
    assert changes(before, after) == ["the files come in another order"]
    assert changes(before, before) == []


# --- F26 and F27: ranks

WORLDS, MICRO_ROWS = (1, 2, 3, 4, 8), (1, 2, 5)


@pytest.mark.fault("F26", "F27")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("micro_rows", MICRO_ROWS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_share_every_step_without_overlap_and_each_has_as_many_batches(
    world: int, micro_rows: int, accumulate: int
) -> None:
    """Whatever the corpus' files are: a rank that had a batch less would leave the others waiting for it."""
    batch_rows, steps = world * micro_rows * accumulate, 7
    n_rows, share = steps * batch_rows, micro_rows * accumulate
    for cursor in (Cursor(), Cursor(3 * batch_rows), Cursor(batch_rows, ((4, 9), (30, 31)))):
        expected = [cursor.row(n) for n in range(n_rows)]
        ranks = [
            list(RankRows(n_rows=n_rows, micro_rows=micro_rows, rank=rank, world=world, cursor=cursor))
            for rank in range(world)
        ]
        assert {len(rows) for rows in ranks} == {steps * share}
        for step in range(steps):  # the rows of a step do not depend on the ranks
            of_step = [row for rows in ranks for row in rows[step * share : (step + 1) * share]]
            assert sorted(of_step) == expected[step * batch_rows : (step + 1) * batch_rows]
        assert len(set(expected)) == n_rows


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, k: int) -> int:
        return k


@pytest.mark.fault("F27")
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("micro_rows", [1, 4])
def test_workers_of_the_loader_neither_lose_nor_repeat_a_row(
    world: int, workers: int, micro_rows: int
) -> None:
    end = 2 * world * micro_rows * 3
    seen = []
    for rank in range(world):
        rows = RankRows(n_rows=end, micro_rows=micro_rows, rank=rank, world=world)
        found = DataLoader(Numbers(), batch_size=micro_rows, sampler=rows, num_workers=workers)
        mine = [k for batch in found for k in batch.tolist()]
        assert mine == list(rows)  # in the order of the sampler
        seen += mine
    assert sorted(seen) == list(range(end))


# --- F28: too little text


@pytest.mark.fault("F28")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"seq_len": 1_000_000},
            r"\d+ tokens are fewer than one row of 1000001; give more text or set a smaller seq",
        ),
        (
            {"batch_rows": 1000},
            r"makes \d+ rows of seq_len=512, fewer than the batch_rows=1000 of one step: give more",
        ),
    ],
)
def test_less_text_than_a_row_or_a_step_takes_is_refused_with_numbers(
    home: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], told: str
) -> None:
    assert re.search(told, refused(capsys, *overrides(home, name="short", **changes)))
