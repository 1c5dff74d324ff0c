"""Sources give documents in one order, name what is wrong with a file, and are known by their content."""

import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from llmtrain.data.digests import Digests
from llmtrain.data.documents import cut
from llmtrain.data.neighbours import Candidates
from llmtrain.data.sources.base import Source, Tally
from llmtrain.data.sources.files import lines, pieces
from llmtrain.data.sources.hub import Hub
from llmtrain.data.sources.python import HELD_OUT, StandardLibrary
from llmtrain.data.sources.text import TextFiles

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: (
        zstandard.compress(data[: len(data) // 2]) + zstandard.compress(data[len(data) // 2 :])
    ),
}


def texts(source: Source, tally: Tally | None = None) -> list[str]:
    return [document.text for document in source.documents(tally or Tally())]


def json_lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_parquet(path: Path, **columns: list) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


# --- the embedded corpus


def test_the_standard_library_is_megabytes_in_one_order_without_its_tests_and_tables():
    documents = list(StandardLibrary().documents(Tally()))
    names = [document.file for document in documents]
    assert names == sorted(names)
    assert names == [document.file for document in StandardLibrary().documents(Tally())]
    assert 5_000_000 < sum(len(document.text.encode()) for document in documents) < 20_000_000
    left_out = {
        "test",
        "tests",
        "idle_test",
        "encodings",
        "pydoc_data",
        "lib2to3",
        "distutils",
        "site-packages",
    }
    assert not any(left_out & set(Path(name).parts) for name in names)


def test_held_out_modules_are_whole_spread_and_near_to_no_other():
    source = StandardLibrary()
    documents = list(source.documents(Tally()))
    held_out = [d.text.encode() for d in documents if source.held_out(d)]
    others = [d.text.encode() for d in documents if not source.held_out(d)]
    assert 250_000 < sum(min(len(text), 32_768) for text in held_out) < 500_000
    assert not Candidates(held_out, 0.3).near(others).tainted.any()
    assert 25 <= len(HELD_OUT) <= 40
    packages = {name for name in HELD_OUT if not name.endswith(".py")}
    for package in packages:
        assert all(source.held_out(d) for d in documents if d.file.startswith(package + "/"))


def test_a_file_that_did_not_change_is_not_read_again(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    digests = Digests(tmp_path / "digests.json")
    first = digests.of(file)
    digests.save()
    memory = (tmp_path / "digests.json").read_text()
    (tmp_path / "digests.json").write_text(memory.replace(first, "remembered"))
    assert Digests(tmp_path / "digests.json").of(file) == "remembered"


# --- text of one's own


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_every_format_gives_the_same_text_plain_and_compressed(tmp_path, suffix):
    long = "".join(f"line {i} of a text that takes more than one block\n" for i in range(50_000))
    compress = COMPRESSORS[suffix]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(
        compress(json_lines({"text": long}, {"text": "日本語\t🙂  "}))
    )
    (tmp_path / f"b.txt{suffix}").write_bytes(compress(long.encode()))
    (tmp_path / f"c.md{suffix}").write_bytes(compress(b"# title"))
    (tmp_path / f"d.py{suffix}").write_bytes(compress(b"x = 1\r\n"))
    assert texts(TextFiles(paths=str(tmp_path))) == [long, "日本語\t🙂  ", long, "# title", "x = 1\r\n"]


def test_parquet_rows_are_documents_whatever_the_width_of_their_strings(tmp_path):
    import pyarrow as pa

    write_parquet(tmp_path / "a.parquet", body=["a", "b", "日本"], n=[1, 2, 3])
    write_parquet(tmp_path / "b.parquet", body=pa.array(["c"], pa.large_string()))
    write_parquet(tmp_path / "c.parquet", body=pa.array(["d", "d"]).dictionary_encode())
    assert texts(TextFiles(paths=str(tmp_path), field="body")) == ["a", "b", "日本", "c", "d", "d"]


def test_files_come_in_the_order_given_and_folders_and_globs_sorted_each_file_once(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    paths = (str(tmp_path / "z.txt"), str(tmp_path / "*.txt"), str(tmp_path))
    assert texts(TextFiles(paths=paths)) == ["z.txt", "a.txt", "b.txt", "sub/c.txt"]


def test_files_of_other_formats_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.pdf").write_text("b")
    tally = Tally()
    assert texts(TextFiles(paths=str(tmp_path)), tally) == ["a"]
    assert tally.dropped == {"file of another format": 1}
    assert tally.first["file of another format"].endswith("b.pdf")


def test_a_large_file_comes_in_pieces_that_join_to_the_whole(tmp_path):
    path = tmp_path / "a.txt"
    content = ("短い行\n" * 100 + "長" * 500 + "\n" + "x\n" * 50).encode()
    path.write_bytes(content)
    parts = list(pieces(path, 200))
    assert b"".join(part for _, part in parts) == content
    assert all(len(part) <= 200 and part.decode() for _, part in parts)
    at = 0
    for line, part in parts:
        assert line == content[:at].count(b"\n") + 1
        at += len(part)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a\n\nb\n", [b"a", b"", b"b"]), (b"a\n\nb", [b"a", b"", b"b"]), (b"", []), (b"\n", [b""])],
)
def test_lines_are_numbered_from_one_with_and_without_a_final_newline(tmp_path, content, expected):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert list(lines(tmp_path / "a.jsonl")) == list(enumerate(expected, 1))


def test_a_fingerprint_changes_with_content_and_reading_but_not_with_place_or_time(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(json_lines({"text": "a", "body": "b"}))
    digests = Digests(tmp_path / "digests.json")

    def fingerprint(**fields) -> str:
        return TextFiles(**{"paths": str(tmp_path / "one"), **fields}).fingerprint(digests)

    first = fingerprint()
    assert fingerprint(paths=str(tmp_path / "two")) == first
    os.utime(tmp_path / "one" / "a.jsonl", (1, 1))
    assert fingerprint() == first
    assert fingerprint(field="body") != first
    assert fingerprint(on_bad_document="error") != first
    (tmp_path / "one" / "a.jsonl").write_bytes(json_lines({"text": "c", "body": "b"}))
    assert fingerprint() != first


def test_a_torn_memory_of_digests_is_made_anew(tmp_path):
    (tmp_path / "digests.json").write_text('{"a": [1')
    file = tmp_path / "a.txt"
    file.write_text("a")
    digests = Digests(tmp_path / "digests.json")
    digest = digests.of(file)
    digests.save()
    assert json.loads((tmp_path / "digests.json").read_text())[str(file)][2] == digest


@pytest.mark.parametrize("limit", [10, 64, 1000])
def test_sections_join_to_the_text_and_end_at_lines_where_they_can(limit):
    text = "def f():\n    return 1\n\n" * 9 + "a b " * 40 + "\n" + "語" * 100 + "🙂" * 20
    raw = text.encode()
    spans = list(cut(raw, limit))
    assert b"".join(raw[a:b] for a, b in spans) == raw
    assert all(0 < b - a <= limit and raw[a:b].decode() for a, b in spans)
    for a, b in spans[:-1]:
        assert b"\n" not in raw[a:b] or raw[b - 1 : b] == b"\n"


# --- datasets


@pytest.fixture
def offline(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_hub_reads_local_files_streaming_or_not(tmp_path, offline, kind, streaming):
    if kind == "json":
        (tmp_path / "a.json").write_bytes(json_lines({"text": "a"}, {"text": None}, {"text": "日本"}))
    else:
        write_parquet(tmp_path / "a.parquet", text=["a", None, "日本"])
    tally = Tally()
    source = Hub(path=kind, data_files=str(tmp_path / f"a.{kind}"), streaming=streaming)
    assert texts(source, tally) == ["a", "日本"]
    assert tally.dropped == {"missing text (null)": 1}
    assert tally.first["missing text (null)"] == f"{tmp_path}/a.{kind}:row 2"


def test_the_fingerprint_of_local_hub_files_is_of_their_content(tmp_path):
    digests = Digests(tmp_path / "digests.json")
    file = tmp_path / "a.json"
    file.write_bytes(json_lines({"text": "a"}))
    source = Hub(path="json", data_files=str(file))
    first = source.fingerprint(digests)
    shutil.copy(file, tmp_path / "b.json")
    assert source.fingerprint(digests) == first
    file.write_bytes(json_lines({"text": "bb"}))
    assert source.fingerprint(digests) != first
