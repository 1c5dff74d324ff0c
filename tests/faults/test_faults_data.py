"""Faults F22 to F28: text, files, shards and rows that are not what they should be are counted or named, never used."""

import gzip
import json
import lzma
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from torch.utils.data import DataLoader

from llmtrain import cli
from llmtrain.data.corpus import Corpus
from llmtrain.data.cursor import Cursor
from llmtrain.data.examples import RankRows
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.sources.base import Tally
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.spool import spool_documents
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import DataError
from llmtrain.philox import generator
from llmtrain.pretrain import train
from runs import metrics, overrides, stopped, tiny, weights, write_text


def prose(seed: int, n_lines: int = 40) -> str:
    numbers = generator(seed, "prose").integers(0, 1 << 20, (n_lines, 6))
    return "".join(" ".join(f"{n:x}" for n in line) + "\n" for line in numbers)


def prepared_of(folder: Path, source: TextFiles) -> Prepared:
    return prepare(Corpus(source=source, cache=str(folder / "cache")), Bytes(n_sentinels=0))


def command(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    code = cli.main(list(words))
    return code, capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line with which a command that meets bad data ends."""
    code, said = command(capsys, *words)
    assert code == 3
    *before, line = said.splitlines()
    assert line.startswith("error: ") and not any("error" in earlier for earlier in before)
    return line


# --- F22: documents

GOOD = [prose(i) for i in range(60)]
LONG = [prose(i, 300) for i in range(60)]  # more than a block of any compressor
BAD: list[bytes] = [  # a JSON line each
    b'{"text": ""}',
    b'{"text": " \\n\\t\\u3000"}',
    b'{"text": "\\ufeff"}',
    b'{"text": null}',
    b'{"text": null}',
    b'{"text": 17}',
    b'{"text": ["a"]}',
    b'{"text": "<s> </s>\\n<|endoftext|>[CLS]<bos>"}',
    b'{"text": "\\u0000a\\u0000b\\u0000"}',
    b'{"text": "a text with a \\u0000 NUL and another \\u0000"}',
    b'{"text": "a text with a lone \\ud800 surrogate"}',
    b'{"text": "a text with invalid \xff\xfe UTF-8, caf\xe9"}',
    b'{"text": "a text with both \xff and \\u0000"}',
]
WITHOUT_TEXT = {
    "empty document": 3,
    "missing text (null)": 2,
    "text that is no string (int)": 1,
    "text that is no string (list)": 1,
    "document of special tokens alone": 1,
}
COUNTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {  # by policy: dropped, repaired
    "replace": (
        WITHOUT_TEXT | {"document that is mostly no text (binary, or in another encoding)": 1},
        {"NUL character": 3, "lone surrogate": 1, "invalid UTF-8 sequence": 4},
    ),
    "skip": (
        WITHOUT_TEXT
        | {
            "document with a NUL character": 2,
            "document with a lone surrogate": 1,
            "document with invalid UTF-8": 2,
        },
        {},
    ),
}


def write_lines(path: Path, lines: list[bytes]) -> TextFiles:
    """The lines spread among the good documents."""
    good = [json.dumps({"text": text}).encode() for text in GOOD]
    together = [line for pair in zip(good, lines, strict=False) for line in pair] + good[len(lines) :]
    path.write_bytes(b"\n".join(together) + b"\n")
    return TextFiles(paths=str(path))


@pytest.mark.fault("F22")
@pytest.mark.parametrize("policy", COUNTS)
def test_bad_documents_are_counted_by_reason_and_the_rest_is_the_corpus(tmp_path: Path, policy: str) -> None:
    source = write_lines(tmp_path / "a.jsonl", BAD)
    dropped, repaired = COUNTS[policy]
    prepared = prepared_of(tmp_path, TextFiles(paths=source.paths, on_bad_document=policy))
    report = prepared.report["parts"]["corpus"]
    assert (report["dropped"], report["repaired"]) == (dropped, repaired)
    assert report["documents"] == len(GOOD) + len(BAD) - sum(dropped.values())
    assert (
        report["first"]["missing text (null)"] == f"{tmp_path}/a.jsonl:8"
    )  # a good document before each bad one
    tokens = prepared.train[0].shards.n_bytes + prepared.validation["corpus"].n_bytes
    assert tokens == report["bytes"] - report.get("duplicate_bytes", 0)
    (line,) = prepared.left_out()
    assert all(f"{n} {reason} (first: " in line for reason, n in {**dropped, **repaired}.items())


@pytest.mark.fault("F22")
@pytest.mark.parametrize("number", range(len(BAD)))
def test_each_bad_document_is_refused_by_its_line_where_the_config_says_so(
    tmp_path: Path, number: int
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [BAD[number]])
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*on_bad_document=") as refused:
        list(TextFiles(paths=source.paths, on_bad_document="error").documents(Tally()))
    assert "\n" not in str(refused.value)


@pytest.mark.fault("F22")
def test_every_start_says_in_one_line_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_lines(tmp_path / "a.jsonl", BAD)
    for steps in (1, 2):  # the second start finds the corpus prepared
        words = overrides(
            tmp_path, data__source__paths=tmp_path / "a.jsonl", steps=steps, name=f"run{steps}", seq_len=64
        )
        code, said = command(capsys, *words)
        assert code == 0
        assert said.count("left out or mended 3 empty document (first: ") == 1


@pytest.mark.slow
@pytest.mark.fault("F22")
def test_a_document_of_a_hundred_megabytes_is_cut_in_sections_in_bounded_memory(tmp_path: Path) -> None:
    line, n_lines = (
        b"a line of a text that goes on and on and on for a hundred megabytes, as some do\n",
        1_300_000,
    )
    path = tmp_path / "a.txt"
    path.write_bytes(line * n_lines)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "spool").mkdir()
    counts = spool_documents(Corpus(source=TextFiles(paths=str(path))), tmp_path / "spool", lambda *_: None)
    assert counts["bytes"] == len(line) * n_lines > 100_000_000
    assert counts["dropped"] == counts["repaired"] == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KB; the file is 104,000
    one = tmp_path / "b.jsonl"
    one.write_bytes(b'{"text": "' + line.replace(b"\n", b"\\n") * n_lines + b'"}\n')
    (document,) = TextFiles(paths=str(one)).documents(Tally())
    assert document.text.encode() == line * n_lines


# --- F23: files

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda whole: whole[: -len(whole) // 3],
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": zstandard.compress,
}


def parquet(path: Path, **columns: list) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=10)
    return path.read_bytes()


def whole(suffix: str, path: Path) -> bytes:
    if suffix == ".parquet":
        return parquet(path, text=LONG)
    return COMPRESSORS[suffix]("".join(json.dumps({"text": text}) + "\n" for text in LONG).encode())


@pytest.mark.fault("F23")
@pytest.mark.parametrize("suffix", [*COMPRESSORS, ".parquet"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_its_line_or_left_where_it_is_damaged(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    other, path = tmp_path / "a.txt", tmp_path / f"b{suffix}"
    other.write_text("another text")
    path.write_bytes(DAMAGES[damage](whole(suffix, path)))
    paths = (str(path), str(other))
    with pytest.raises(DataError, match=r"on_bad_file=skip") as refused:
        list(TextFiles(paths=paths).documents(Tally()))
    said = str(refused.value)
    assert said.startswith(str(path)) and "\n" not in said
    tally = Tally()
    kept = [d.text for d in TextFiles(paths=paths, on_bad_file="skip").documents(tally)]
    assert kept[-1] == "another text"
    assert kept[:-1] == LONG[: len(kept) - 1]  # what came before the damage, unharmed
    assert sum(tally.dropped.values()) == 1
    if damage == "cut" and suffix != ".parquet":
        assert 0 < len(kept) - 1 < len(LONG)
        assert said.startswith(f"{path}:{len(kept)}: ")  # the line that is cut


WRONG = {
    '{"text": "a"': "line that is not JSON",
    '["a"]': "line that is no JSON object",
    '{"body": "a"}': "line without the field",
}


@pytest.mark.fault("F23")
@pytest.mark.parametrize("line", WRONG)
def test_a_line_of_another_schema_is_named_or_skipped_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{line}\n{{"text": "two"}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*on_bad_file=skip"):
        list(TextFiles(paths=str(path)).documents(Tally()))
    tally = Tally()
    found = [d.text for d in TextFiles(paths=str(path), on_bad_file="skip").documents(tally)]
    assert (found, tally.dropped) == (["one", "two"], {WRONG[line]: 1})


@pytest.mark.fault("F23")
@pytest.mark.parametrize("columns", [{"body": ["a"]}, {"text": [[1, 2]]}])
def test_a_parquet_file_of_another_schema_is_named_or_skipped(tmp_path: Path, columns: dict) -> None:
    parquet(tmp_path / "a.parquet", **columns)
    (tmp_path / "b.txt").write_text("another text")
    with pytest.raises(DataError, match=r"a\.parquet: .*on_bad_file=skip"):
        list(TextFiles(paths=str(tmp_path)).documents(Tally()))
    tally = Tally()
    found = [d.text for d in TextFiles(paths=str(tmp_path), on_bad_file="skip").documents(tally)]
    assert (found, tally.dropped) == (["another text"], {"file without the field": 1})


@pytest.mark.fault("F23")
def test_the_command_ends_with_the_code_for_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole(".jsonl.gz", path)[:-100])
    assert refused(capsys, *overrides(tmp_path, data__source__paths=path)).startswith(f"error: {path}:")


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
