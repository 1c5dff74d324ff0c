"""Whatever is wrong with a file, a line or a document gets one line that names place and way out, or is counted."""

import gzip
import lzma
import os

import pytest
import zstandard

from inputs import written
from llmtrain.data.sources.base import Source, Tally
from llmtrain.data.sources.hub import Hub
from llmtrain.data.sources.python import StandardLibrary, _root
from llmtrain.data.sources.text import TextFiles
from llmtrain.errors import DataError

COMPRESSORS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def refused(source: Source, *told: str, tally: Tally | None = None) -> None:
    """Reading ``source`` raises one line with each of ``told`` in it."""
    with pytest.raises(DataError) as caught:
        list(source.documents(tally or Tally()))
    message = str(caught.value)
    assert "\n" not in message
    for words in told:
        assert words in message


# --- paths


@pytest.mark.parametrize("name", ["none.txt", "none/", "none*.txt", "some/**/*.jsonl"])
def test_a_path_with_nothing_there_is_named(tmp_path, name):
    refused(TextFiles(paths=str(tmp_path / name)), name.rstrip("/"), "data.source.paths")


def test_an_unknown_format_is_answered_by_the_known_ones(tmp_path):
    refused(TextFiles(paths=str(written(tmp_path / "a.docx", "a"))), "a.docx", ".jsonl", ".parquet", ".gz")
    refused(TextFiles(paths=str(written(tmp_path / "a.parquet.gz", "a"))), "a.parquet.gz")


def test_a_folder_without_text_is_named(tmp_path):
    written(tmp_path / "pictures" / "a.png", "a")
    refused(TextFiles(paths=str(tmp_path / "pictures")), "pictures", ".txt", "data.source.paths")


# --- files


@pytest.mark.fault("F23")
@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_compressed_file_that_is_cut_off_is_named(tmp_path, suffix, keep):
    whole = COMPRESSORS[suffix](os.urandom(100_000).hex().encode())
    path = written(tmp_path / f"a.txt{suffix}", whole[: int(len(whole) * keep)])
    refused(TextFiles(paths=str(path)), str(path), "cut off", "again")


@pytest.mark.fault("F23")
@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_a_file_that_is_not_what_its_suffix_says_is_named(tmp_path, suffix):
    path = written(tmp_path / f"a.txt.{suffix}", "plain text, which no decompressor takes")
    refused(TextFiles(paths=str(path)), str(path), f"not a valid .{suffix} file")


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    "suffix", [".gz", ".xz"]
)  # zstandard has no checksum of the content unless asked for one
def test_a_bit_that_flipped_in_a_compressed_file_is_noticed(tmp_path, suffix):
    whole = bytearray(COMPRESSORS[suffix](os.urandom(10_000).hex().encode()))
    whole[len(whole) // 2] ^= 0x10
    path = written(tmp_path / f"a.txt{suffix}", bytes(whole))
    refused(TextFiles(paths=str(path)), str(path), "not a valid", "again")


@pytest.mark.fault("F23")
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_an_empty_data_file_is_named(tmp_path, name):
    path = written(tmp_path / name, "")
    refused(TextFiles(paths=str(path)), str(path), "again")


@pytest.mark.fault("F22")
def test_an_empty_text_file_is_counted_or_refused(tmp_path):
    path = written(tmp_path / "a.txt", " \n\t\n")
    tally = Tally()
    assert list(TextFiles(paths=str(path)).documents(tally)) == []
    assert tally.dropped == {"empty document": 1}
    refused(TextFiles(paths=str(path), on_bad_document="error"), f"{path}:1", "empty document", "skip")


@pytest.mark.fault("F23")
def test_a_truncated_or_altered_parquet_file_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [os.urandom(50).hex() for _ in range(1000)]}), path)
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-4], whole[: len(whole) // 2], b"PAR1" + os.urandom(500) + b"PAR1"):
        refused(TextFiles(paths=str(written(path, damaged))), str(path), "Parquet", "again")


@pytest.mark.fault("F23")
def test_a_parquet_file_without_the_field_or_with_no_text_in_it_is_answered_by_its_fields(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["a"], "ids": [[1, 2]]}), path)
    refused(TextFiles(paths=str(path)), str(path), "'text'", "'content'")
    refused(TextFiles(paths=str(path), field="ids"), str(path), "'ids'", "not text")


# --- lines


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "a"', "not JSON"),
        ("plain text", "not JSON"),
        ('["a"]', "list"),
        ('{"body": "a", "id": 1}', "'body', 'id'"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_json_object_with_the_field_is_named(tmp_path, line, told):
    path = written(tmp_path / "a.jsonl", f'{{"text": "ok"}}\n{line}\n{{"text": "ok"}}\n')
    refused(TextFiles(paths=str(path)), f"{path}:2", told)


@pytest.mark.fault("F22")
def test_invalid_utf8_is_counted_and_replaced_or_refused_with_its_line(tmp_path):
    plain = written(tmp_path / "a.txt", b"one\ntwo \xff\xfe\nthree \xe3\x81\n\xef\xbf\xbd was there before")
    lines = written(tmp_path / "b.jsonl", b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    tally = Tally()
    found = [d.text for d in TextFiles(paths=(str(plain), str(lines))).documents(tally)]
    assert found == ["one\ntwo \ufffd\ufffd\nthree \ufffd\n\ufffd was there before", "ok", "caf\ufffd"]
    assert tally.repaired == {"invalid UTF-8 sequence": 4}
    assert tally.first == {"invalid UTF-8 sequence": f"{plain}:2"}
    refused(
        TextFiles(paths=str(plain), on_bad_document="error"), f"{plain}:2", "0xff", "on_bad_document=replace"
    )
    refused(TextFiles(paths=str(lines), on_bad_document="error"), f"{lines}:2", "0xe9")


@pytest.mark.fault("F22")
def test_invalid_utf8_in_parquet_is_counted_and_replaced(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    strings = pa.array([b"ok", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), path)
    tally = Tally()
    assert [d.text for d in TextFiles(paths=str(path)).documents(tally)] == ["ok", "caf\ufffd"]
    assert tally.repaired == {"invalid UTF-8 sequence": 1}
    refused(TextFiles(paths=str(path), on_bad_document="error"), f"{path}:row 2")


BAD = {
    "null": "missing text (null)",
    "17": "text that is no string (int)",
    '["a"]': "text that is no string (list)",
    '""': "empty document",
    '" \\n\\u3000"': "empty document",
    '"a\\u0000b"': "document with a NUL character",
    '"a\\ud800b"': "document with a lone surrogate",
}


@pytest.mark.fault("F22")
def test_bad_documents_are_skipped_and_counted_by_reason(tmp_path):
    rows = "".join(f'{{"text": {value}}}\n' for value in BAD)
    path = written(tmp_path / "a.jsonl", f'{rows}\n{{"text": "\\ufeffgood"}}\n')
    tally = Tally()
    assert [d.text for d in TextFiles(paths=str(path), on_bad_document="skip").documents(tally)] == ["good"]
    reasons = list(BAD.values())
    assert tally.dropped == {**{reason: reasons.count(reason) for reason in reasons}, "blank line": 1}
    assert tally.repaired == {"byte order mark removed": 1}
    assert tally.first["document with a lone surrogate"] == f"{path}:7"


@pytest.mark.fault("F22")
@pytest.mark.parametrize(("value", "reason"), BAD.items())
def test_a_bad_document_is_refused_where_the_config_says_so(tmp_path, value, reason):
    path = written(tmp_path / "a.jsonl", f'{{"text": "ok"}}\n{{"text": {value}}}\n')
    refused(TextFiles(paths=str(path), on_bad_document="error"), f"{path}:2", reason, "on_bad_document=skip")


# --- datasets and the library


@pytest.fixture
def offline(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.fault("F23")
def test_what_datasets_cannot_read_is_one_line(tmp_path, offline):
    good = str(written(tmp_path / "good.json", '{"body": "a"}\n'))
    bad = str(written(tmp_path / "bad.json", '{"text": "a"}\n{"text": \n'))
    refused(Hub(path="json", data_files=good), f"{good}:row 1", "'body'")
    refused(Hub(path="json", data_files=bad), bad, "data_files")
    refused(Hub(path="json", data_files=str(tmp_path / "none.json")), "none.json", "data_files")
    refused(Hub(path="json", data_files=good, split="test"), good, "test", "train")


def test_a_remote_dataset_without_a_network_is_answered_by_the_local_ways(offline):
    refused(
        Hub(path="no-such-user/no-such-data"), "no-such-user/no-such-data", "cannot be reached", "data=text"
    )


def test_a_python_without_its_library_as_files_is_answered_by_the_other_sources(tmp_path, monkeypatch):
    monkeypatch.setattr("llmtrain.data.sources.python._root", lambda: tmp_path)
    refused(StandardLibrary(), str(tmp_path), "data=text")
    assert _root().is_dir()
