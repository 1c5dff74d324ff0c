"""Shards come back as they were written, appear whole or not at all, and are refused when anything is wrong."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.shards import Shards, ShardWriter
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.errors import DataError, StorageError
from llmtrain.types import BOS, Vocab

REPO = Path(__file__).resolve().parents[1]
TEXTS = ["first document", "", "三つ目", "the last one\n"]


def vocabulary(size: int) -> Vocab:
    no = np.zeros(size, dtype=bool)
    return Vocab(size, 16, np.ones(size, dtype=np.int32), no, no)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer").mkdir()
    return Bytes(n_sentinels=0).build(lambda: iter(()), tmp_path / "tokenizer")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    meta = {"tokenizer_hash": tokenizer.hash, "source_fingerprint": "abc"}
    with ShardWriter(tmp_path / "train", tokenizer.vocab(), meta) as writer:
        for text in TEXTS:
            writer.add(tokenizer.encode(text), len(text.encode()))
    return tmp_path / "train"


def test_documents_come_back_each_behind_its_bos(folder: Path, tokenizer: Tokenizer) -> None:
    shards = Shards.open_for(folder, tokenizer)
    assert shards.n_documents == len(TEXTS) and shards.n_tokens == len(shards.tokens)
    assert shards.tokens[shards.offsets].tolist() == [BOS] * (len(TEXTS) + 1)
    assert shards.offsets[-1] == shards.n_tokens - 1  # the last BOS ends the last document
    spans = zip(shards.offsets[:-1], shards.offsets[1:], strict=True)
    assert [tokenizer.decode(shards.tokens[start + 1 : end]) for start, end in spans] == TEXTS
    assert shards.doc_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert shards.n_bytes == sum(len(text.encode()) for text in TEXTS)
    assert np.array_equal(shards.vocab.n_bytes, tokenizer.vocab().n_bytes)
    assert shards.manifest["meta"]["source_fingerprint"] == "abc"


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_ids_are_stored_in_the_smallest_type_that_holds_the_vocabulary(
    size: int, dtype: str, tmp_path: Path
) -> None:
    with ShardWriter(tmp_path / "s", vocabulary(size), {}) as writer:
        writer.add(np.array([size - 1, 16], dtype=np.int32), 2)
    assert Shards.open(tmp_path / "s").tokens.dtype == dtype
    assert Shards.open(tmp_path / "s").tokens.tolist() == [BOS, size - 1, 16, BOS]


def test_equal_documents_give_equal_files_and_fingerprints(folder: Path, tokenizer: Tokenizer) -> None:
    meta = {"tokenizer_hash": tokenizer.hash, "source_fingerprint": "abc"}
    again = folder.with_name("again")
    with ShardWriter(again, tokenizer.vocab(), meta) as writer:
        for text in TEXTS:
            writer.add(tokenizer.encode(text), len(text.encode()))
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {
        f.name: f.read_bytes() for f in folder.iterdir()
    }
    assert Shards.open(again).fingerprint == Shards.open(folder).fingerprint
    with ShardWriter(folder.with_name("other"), tokenizer.vocab(), meta) as writer:
        writer.add(tokenizer.encode("other"), 5)
    assert Shards.open(folder.with_name("other")).fingerprint != Shards.open(folder).fingerprint


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s", vocabulary(20), {}) as writer:
        writer.add(np.array([16]), 1)
        raise RuntimeError
    with (
        pytest.raises(DataError, match="vocabulary of 20"),
        ShardWriter(tmp_path / "s", vocabulary(20), {}) as writer,
    ):
        writer.add(np.array([20]), 1)
    with pytest.raises(DataError, match="no document"), ShardWriter(tmp_path / "s", vocabulary(20), {}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "s.tmp").mkdir()
    (tmp_path / "s.tmp" / "tokens.bin").write_bytes(b"half")
    with pytest.raises(DataError, match=r"s/manifest\.json cannot be read"):
        Shards.open(tmp_path / "s")
    with ShardWriter(tmp_path / "s", vocabulary(20), {}) as writer:
        writer.add(np.array([16]), 1)
    assert Shards.open(tmp_path / "s").tokens.tolist() == [BOS, 16, BOS]
    with pytest.raises(StorageError, match="exists already"), ShardWriter(tmp_path / "s", vocabulary(20), {}):
        pass


def test_a_disk_that_fills_up_is_named_with_numbers_and_leaves_nothing(tmp_path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does by itself at start
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        with (
            pytest.raises(
                StorageError, match=r"tokens\.bin: File too large: it takes \d+ bytes so far and \d+ are free"
            ),
            ShardWriter(tmp_path / "s", vocabulary(20), {}) as writer,
        ):
            for _ in range(100):
                writer.add(np.full(100_000, 16), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("F24")
@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "bytes.bin", "vocab.npz", "manifest.json"])
@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "longer", "flipped"])
def test_a_damaged_file_is_refused_by_name_with_the_way_out(folder: Path, name: str, fault: str) -> None:
    Shards.open(folder)  # remembered as whole
    file = folder / name
    content = bytearray(file.read_bytes())
    match fault:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "longer":
            file.write_bytes(content + b"x")
        case "flipped":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    with pytest.raises(DataError, match="prepare it again") as refused:
        Shards.open(folder)
    assert str(file) in str(refused.value) or name == "manifest.json"
    assert "\n" not in str(refused.value)


@pytest.mark.fault("F24")
def test_an_id_outside_the_vocabulary_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["vocab_size"] = 100
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"id \d+, outside its vocabulary of 100"):
        Shards.open(folder)


@pytest.mark.fault("F24")
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int8"},
        {"dtype": "uint32"},
        {"n_tokens": 3},
        {"n_documents": None},
        {"files": {}},
        {"meta": 1},
    ],
)
def test_a_manifest_that_contradicts_its_files_is_refused(folder: Path, change: dict[str, object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=r"manifest\.json"):
        Shards.open(folder)


@pytest.mark.fault("F24")
def test_shards_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Bytes(n_sentinels=4).build(lambda: iter(()), tmp_path / "other")
    with pytest.raises(DataError, match=r"another tokenizer \(vocabulary 272, .*vocabulary 276"):
        Shards.open_for(folder, other)


def test_checksums_are_read_once_until_a_file_changes(folder: Path) -> None:
    Shards.open(folder)
    file = folder / "tokens.bin"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="checksum"):
        Shards.open(folder)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    Shards.open(folder)  # size and time are what they were: not read again


def test_a_folder_that_cannot_remember_opens_all_the_same(folder: Path) -> None:
    (folder / ".verified.json").mkdir()
    assert Shards.open(folder).n_documents == len(TEXTS)


def test_reading_shards_imports_no_torch(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from llmtrain.data.shards import Shards\n"
        "Shards.open(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=REPO, check=True)


def test_shards_travel_to_workers_as_a_path(folder: Path) -> None:
    sent = pickle.dumps(Shards.open(folder))
    assert len(sent) < 3000
    assert np.array_equal(pickle.loads(sent).tokens, Shards.open(folder).tokens)
