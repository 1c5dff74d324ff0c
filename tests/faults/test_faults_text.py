"""Faults F22 and F23: documents and files that are not what they should be are counted or named, never used."""

import gzip
import json
import lzma
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from llmtrain.data.corpus import Corpus
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.sources.base import Tally
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.spool import spool_documents
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import DataError
from llmtrain.philox import generator
from refusals import command, refused
from runs import overrides


def prose(seed: int, n_lines: int = 40) -> str:
    numbers = generator(seed, "prose").integers(0, 1 << 20, (n_lines, 6))
    return "".join(" ".join(f"{n:x}" for n in line) + "\n" for line in numbers)


def prepared_of(folder: Path, source: TextFiles) -> Prepared:
    return prepare(Corpus(source=source, cache=str(folder / "cache")), Bytes(n_sentinels=0))


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
