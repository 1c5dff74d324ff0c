"""A corpus is prepared once, whole, and the same every time, whoever is killed meanwhile."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from corpora import BYTES, documents_of, files_of, prose, write_documents
from llmtrain.config import to_plain
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.prepare import prepare
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.stages import alone
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.errors import DataError, StorageError

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Makes the same corpus of 60 documents, about 3 MB, with any fields and cache."""
    source = write_documents(tmp_path / "a.jsonl", [prose(i, 1000) for i in range(60)])
    return lambda cache="cache", **fields: Corpus(source=source, cache=str(tmp_path / cache), **fields)


@pytest.fixture
def fine_grained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some twenty chunks, and progress told at each."""
    monkeypatch.setattr("llmtrain.data.prepare._slowed", lambda progress: progress or (lambda s, d, t: None))
    monkeypatch.setattr("llmtrain.data.encode._CHUNK", 1 << 17)


# --- the same every time


def test_the_number_of_workers_does_not_matter(corpus):
    tokenizer = SentencePiece(vocab_size=600, n_sentinels=0, max_training_bytes=100_000)
    one, two = (prepare(corpus(f"cache{n}", workers=n), tokenizer) for n in (1, 2))
    assert files_of(one.folder) == files_of(two.folder)
    assert one.fingerprint == two.fingerprint
    assert len({p.train[0].shards.fingerprint for p in (one, two)}) == 1


def test_how_the_work_is_done_is_no_part_of_what_a_corpus_is(corpus):
    one = corpus()
    other = corpus("elsewhere", workers=3, loader_workers=2)
    part = Corpus(source=one.source)
    mixes = [
        Mix(components={"a": part}, weights={"a": 1.0}, cache=cache, workers=n, loader_workers=n)
        for cache, n in (("x", 1), ("y", 2))
    ]
    for pair in ((one, other), mixes):
        first, second = (to_plain(data, identity=True) for data in pair)
        assert first == second
        assert not {"cache", "workers", "loader_workers"} & first.keys()
        assert to_plain(pair[0]) != to_plain(pair[1])
    assert "isolate_documents" in to_plain(one, identity=True)


def test_a_second_start_does_no_work(corpus):
    first = prepare(corpus(), BYTES)
    times = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*.bin")}
    calls: list[str] = []
    second = prepare(
        corpus(workers=2, isolate_documents=False), BYTES, progress=lambda s, d, t: calls.append(s)
    )
    assert second.folder == first.folder
    assert not calls
    assert {p: p.stat().st_mtime_ns for p in second.folder.rglob("*.bin")} == times


def test_scripts_reach_objectives_and_not_the_shards(corpus, tmp_path):
    """Shards of before they were known serve as they are, and the hashes of their scores stay."""
    tokenizer = SentencePiece(vocab_size=330, n_sentinels=0)
    texts = [f"{'吾輩は猫である'[i % 7 :]}。名前はまだ{i}無い。\n" * 20 for i in range(60)]
    japanese = Corpus(source=write_documents(tmp_path / "ja.jsonl", texts), cache=str(tmp_path / "ja"))
    for _ in range(2):
        prepared = prepare(japanese, tokenizer)
        assert np.array_equal(prepared.vocab.scripts, prepared.tokenizer.vocab().scripts)
        assert prepared.vocab.scripts.any() and prepared.train[0].shards.vocab.scripts is None
    assert prepare(corpus(), BYTES).vocab.scripts is None


def test_what_changes_the_text_the_rules_or_the_tokenizer_changes_the_cache(corpus, tmp_path):
    first = prepare(corpus(), BYTES)
    other_rule = prepare(corpus(validation_fraction=0.2), BYTES)
    other_tokenizer = prepare(corpus(), Bytes(n_sentinels=8))
    write_documents(tmp_path / "a.jsonl", [prose(i, 1000) for i in range(61)])
    other_text = prepare(corpus(), BYTES)
    assert len({p.folder for p in (first, other_rule, other_tokenizer, other_text)}) == 4
    assert first.fingerprint == other_tokenizer.fingerprint
    assert len({p.fingerprint for p in (first, other_rule, other_text)}) == 3


@pytest.mark.parametrize("stage", ["read", "split", "tokenizer", "tokenize"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_goes_on_and_ends_the_same(corpus, tmp_path, fine_grained, stage, workers):
    whole = files_of(prepare(corpus("whole"), BYTES).folder)

    def kill(now: str, done: int, total: int) -> None:
        if now == stage and (stage != "tokenize" or done > 0):
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        prepare(corpus(workers=workers), BYTES, progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = list((tmp_path / "cache").glob("*.partial/corpus/work/train/*.npz"))
    assert bool(left) == (stage == "tokenize")
    times = [file.stat().st_mtime_ns for file in left]
    redone: list[tuple[str, int]] = []
    resumed = prepare(corpus(), BYTES, progress=lambda s, d, t: redone.append((s, d)))
    assert files_of(resumed.folder) == whole
    stages = ["read", "split", "tokenizer", "tokenize"]
    assert {s for s, _ in redone} == set(stages[stages.index(stage) :])
    if times:
        assert redone[0][1] > 0  # bytes of the chunks that were there


def test_a_part_that_was_damaged_is_named_and_made_again_once_it_is_deleted(corpus):
    first = prepare(corpus(), BYTES)
    whole = files_of(first.folder)
    tokens = first.folder / "corpus" / "train" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens\.bin has .* bytes.*delete .*train and prepare it again"):
        prepare(corpus(), BYTES)
    shutil.rmtree(tokens.parent)
    assert files_of(prepare(corpus(), BYTES).folder) == whole


def test_of_two_starts_at_once_one_prepares_and_the_other_waits_and_says_so(corpus, tmp_path, caplog):
    entered, leave = threading.Event(), threading.Event()
    progressed: list[str] = []

    def hold(stage: str, done: int, total: int) -> None:
        entered.set()
        assert leave.wait(60)

    first = threading.Thread(target=prepare, args=(corpus(), BYTES), kwargs={"progress": hold})
    first.start()
    assert entered.wait(60)
    threading.Timer(0.3, leave.set).start()
    prepare(corpus(), BYTES, progress=lambda s, d, t: progressed.append(s))
    first.join()
    assert not progressed
    assert f"another process (pid {os.getpid()}) is preparing this corpus" in caplog.text


def test_a_lock_ends_with_its_holder(tmp_path):
    if (child := os.fork()) == 0:
        with alone(tmp_path / "lock"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    start = time.monotonic()
    with alone(tmp_path / "lock"):
        assert time.monotonic() - start < 1


def test_workers_end_when_the_process_that_started_them_is_killed(corpus, tmp_path, fine_grained):
    def kill(now: str, done: int, total: int) -> None:
        if now == "tokenize" and done > 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        prepare(corpus(workers=2), BYTES, progress=kill)
        os._exit(0)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while _processes(str(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_told_and_the_next_start_goes_on(corpus, tmp_path, fine_grained):
    whole = files_of(prepare(corpus("whole"), BYTES).folder)

    def kill_workers(stage: str, done: int, total: int) -> None:
        for pid in _processes(str(tmp_path)) if stage == "tokenize" and done > 0 else ():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(StorageError, match=r"killed by signal 9.*data\.workers.*is kept"):
        prepare(corpus(workers=2), BYTES, progress=kill_workers)
    assert files_of(prepare(corpus(), BYTES).folder) == whole


def _processes(argument: str) -> list[int]:
    """Those with ``argument`` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if argument in path.read_text():
                found.append(int(path.parent.name))
    return found


def test_progress_is_told_in_stages_and_at_most_ten_times_a_second(corpus):
    calls: list[tuple[str, int, int | None, float]] = []
    prepare(corpus(), BYTES, progress=lambda s, d, t: calls.append((s, d, t, time.monotonic())))
    assert list(dict.fromkeys(c[0] for c in calls)) == ["read", "split", "tokenizer", "tokenize"]
    for (before, done, _, then), (after, more, total, now) in pairwise(calls):
        assert now - then >= 0.1 or before != after
        assert more >= 0 and (total is None or more <= total)
        assert more >= done or before != after or total


# --- real text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["books_en", "aozora_ja"])
def test_twenty_megabytes_of_real_text_come_back_as_they_were(tmp_path, name):
    path = SHARED / "corpora" / f"{name}.jsonl.xz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    source = TextFiles(paths=str(path))
    prepared = prepare(Corpus(source=source, cache=str(tmp_path)), SentencePiece(vocab_size=8192))
    train, validation = prepared.train[0].shards, prepared.validation["corpus"]
    report = prepared.report["parts"]["corpus"]
    assert report["dropped"] == report["repaired"] == {}
    assert train.n_bytes + validation.n_bytes == report["bytes"] > 15_000_000
    assert 200_000 <= validation.n_bytes <= 400_000
    n_bytes = prepared.vocab.n_bytes
    for shards in (train, validation):
        assert int(n_bytes[shards.tokens].sum()) == shards.n_bytes
    assert sum(map(len, (t.encode() for t in documents_of(prepared, validation)))) == validation.n_bytes
