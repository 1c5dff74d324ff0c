"""A corpus is prepared once, whole, the same every time; what is held out for validation is not in training."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmtrain.config import to_plain
from llmtrain.data.corpus import Corpus, Mix
from llmtrain.data.dedup import mark_duplicates
from llmtrain.data.neighbours import windows
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.shards import Shards
from llmtrain.data.sources.python import HELD_OUT, StandardLibrary
from llmtrain.data.sources.text import TextFiles
from llmtrain.data.spool import INDEX, Spool, open_index, spool_documents
from llmtrain.data.stages import alone
from llmtrain.data.tokenizers.byte import Bytes
from llmtrain.data.tokenizers.sentencepiece import SentencePiece
from llmtrain.data.training_text import training_text
from llmtrain.errors import DataError, StorageError
from llmtrain.philox import generator

SHARED = Path(__file__).resolve().parents[2] / "shared"
BYTES = Bytes(n_sentinels=0)


@cache
def prose(seed: int, n_lines: int) -> str:
    """Lines of random words: no two texts of different seeds share any."""
    rng = generator(seed, "prose")
    words = rng.integers(0, 1 << 20, (n_lines, 8))
    return "".join(" ".join(f"{word:x}" for word in line) + "\n" for line in words)


def write_documents(path: Path, documents: list[str]) -> TextFiles:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return TextFiles(paths=str(path))


def documents_of(prepared: Prepared, shards: Shards) -> list[str]:
    """The text of each document; ids are turned into bytes by the vocabulary's surfaces, which is fast."""
    surfaces = [b""] * prepared.vocab.n_reserved + prepared.tokenizer.surfaces()
    spans = zip(shards.offsets[:-1].tolist(), shards.offsets[1:].tolist(), strict=True)
    return [b"".join([surfaces[i] for i in shards.tokens[a:b].tolist()]).decode() for a, b in spans]


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is prepared, but the seconds that it took."""
    kept = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("report.json", ".verified.json"))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


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


# --- what is held out


def test_train_and_validation_are_the_corpus_cut_in_two(corpus):
    prepared = prepare(corpus(), BYTES)
    train, validation = prepared.train[0].shards, prepared.validation["corpus"]
    expected = "".join(prose(i, 1000) for i in range(60))
    lines = Counter(expected.splitlines())
    found = [line for s in (train, validation) for d in documents_of(prepared, s) for line in d.splitlines()]
    assert Counter(found) == lines
    assert train.n_bytes + validation.n_bytes == len(expected)
    assert 200_000 <= validation.n_bytes < 300_000
    assert train.doc_bytes.max() <= 65_536
    assert validation.doc_bytes.max() <= 32_768
    owner = {line: i for i in range(60) for line in prose(i, 1000).splitlines()}
    held_out = Counter[int]()
    for text in documents_of(prepared, validation):
        held_out[owner[text.splitlines()[0]]] += len(text)
    assert max(held_out.values()) <= 32_768
    assert prepared.report["parts"]["corpus"]["documents"] == 60


def test_exact_copies_are_dropped_unless_they_are_wanted(tmp_path):
    originals = [prose(i, 50) for i in range(40)]
    source = write_documents(tmp_path / "a.jsonl", [*originals, *originals[:7], originals[0]])
    n_bytes = sum(map(len, originals))
    for deduplicate, expected, dropped in ((True, n_bytes, 8), (False, None, 0)):
        prepared = prepare(
            Corpus(source=source, cache=str(tmp_path / "cache"), deduplicate=deduplicate), BYTES
        )
        kept = prepared.train[0].shards.n_bytes + prepared.validation["corpus"].n_bytes
        assert prepared.report["parts"]["corpus"]["duplicate_documents"] == dropped
        assert kept == (expected or n_bytes + sum(map(len, [*originals[:7], originals[0]])))


def test_near_duplicates_stay_on_one_side(tmp_path):
    """Families of three: a text, one with a third of its lines changed, and one near to the second alone."""
    documents = []
    for i in range(100):
        lines = prose(i, 60).splitlines(True)
        second = lines[:30] + prose(1000 + i, 30).splitlines(True)
        third = second[30:] + prose(2000 + i, 30).splitlines(True)
        documents += ["".join(lines), "".join(second), "".join(third)]
    source = write_documents(tmp_path / "a.jsonl", documents)
    prepared = prepare(Corpus(source=source, cache=str(tmp_path / "cache"), validation_fraction=0.1), BYTES)
    train = np.concatenate([windows(t.encode()) for t in documents_of(prepared, prepared.train[0].shards)])
    held_out = documents_of(prepared, prepared.validation["corpus"])
    assert len(held_out) >= 20
    for text in held_out:
        assert not np.isin(windows(text.encode()), train).any()


@pytest.mark.parametrize("n_lines", [60, 300, 900, 20_000])
def test_one_file_of_ones_own_is_split_whatever_its_size(tmp_path, n_lines):
    path = tmp_path / "a.txt"
    path.write_text(prose(0, n_lines))
    prepared = prepare(Corpus(source=TextFiles(paths=str(path)), cache=str(tmp_path / "cache")), BYTES)
    n_bytes = path.stat().st_size
    assert min(200_000, n_bytes // 10) <= prepared.validation["corpus"].n_bytes <= max(400_000, 512)
    assert prepared.train[0].shards.n_bytes >= n_bytes // 2


def test_the_standard_library_holds_out_its_list_and_no_more_than_32_kb_of_a_file(tmp_path):
    prepared = prepare(Corpus(source=StandardLibrary(), cache=str(tmp_path)), BYTES)
    validation = prepared.validation["corpus"]
    assert len(HELD_OUT) <= validation.n_documents
    assert 250_000 < validation.n_bytes < 500_000
    assert validation.doc_bytes.max() <= 32_768
    assert "def sched" not in "".join(documents_of(prepared, validation))
    assert any("class scheduler:" in text for text in documents_of(prepared, validation))
    assert not any("class scheduler:" in text for text in documents_of(prepared, prepared.train[0].shards))


def test_no_more_than_max_bytes_are_read(corpus):
    for limit in (100_000, 1_000_000):
        report = prepare(corpus(max_bytes=limit), BYTES).report["parts"]["corpus"]
        assert limit - 100 < report["bytes"] <= limit


# --- sets that are held out by name


@pytest.fixture
def news(tmp_path: Path) -> TextFiles:
    """Three texts, one of them in ``corpus`` too, one twice, one long."""
    texts = [prose(7, 1000), prose(100, 50), prose(100, 50), prose(101, 2000)]
    return write_documents(tmp_path / "news.jsonl", texts)


def test_a_named_set_is_whole_but_for_copies_and_says_what_of_it_is_trained_on(corpus, news):
    prepared = prepare(corpus(held_out={"news": news}), BYTES)
    shards = prepared.held_out["news"]
    assert "".join(documents_of(prepared, shards)) == prose(7, 1000) + prose(100, 50) + prose(101, 2000)
    assert shards.doc_bytes.max() <= 65_536
    report = prepared.report["held_out"]["news"]
    expected = {"documents": 4, "duplicate_documents": 1, "also_in_training": 1, "tokens": shards.n_tokens}
    assert report.items() >= expected.items()
    assert list(prepared.validation) == ["corpus"]


def test_a_set_that_joins_leaves_the_corpus_alone_and_is_made_once(corpus, news, tmp_path):
    alone_with = prepare(corpus(), BYTES)
    before = files_of(alone_with.folder)
    times = {path: path.stat().st_mtime_ns for path in alone_with.folder.rglob("*")}
    stages: list[str] = []
    joined = prepare(corpus(held_out={"news": news}), BYTES, progress=lambda s, d, t: stages.append(s))
    assert set(stages) == {"held out: news"}
    assert (joined.folder, joined.fingerprint) == (alone_with.folder, alone_with.fingerprint)
    assert files_of(joined.folder) == before
    assert {path: path.stat().st_mtime_ns for path in joined.folder.rglob("*")} == times
    stages.clear()
    renamed = prepare(corpus(held_out={"olds": news}), BYTES, progress=lambda s, d, t: stages.append(s))
    assert not stages  # a set is known by its content
    assert renamed.held_out["olds"].fingerprint == joined.held_out["news"].fingerprint
    other = prepare(corpus(held_out={"news": news}), Bytes(n_sentinels=8))
    assert other.held_out["news"].folder != joined.held_out["news"].folder


@pytest.mark.parametrize("calls", [1, 2, 6])
def test_a_set_whose_preparation_is_killed_goes_on_and_ends_the_same(corpus, news, fine_grained, calls):
    whole = prepare(corpus("whole", held_out={"news": news}), BYTES).held_out["news"].folder
    told: list[str] = []

    def kill(now: str, done: int, total: int | None) -> None:
        told.append(now)
        if told.count("held out: news") == calls:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        prepare(corpus(held_out={"news": news}), BYTES, progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = prepare(corpus(held_out={"news": news}), BYTES).held_out["news"].folder
    assert files_of(again.parent) == files_of(whole.parent)


def test_paths_in_the_place_of_a_set_are_text_files(tmp_path):
    source = TextFiles(paths="a.txt")
    given = Corpus(source=source, held_out={"a": "a.txt", "b": ["b.txt", "c/*.txt"], "c": source})  # type: ignore[dict-item]
    assert given.held_out == {"a": source, "b": TextFiles(paths=("b.txt", "c/*.txt")), "c": source}


def test_what_is_wrong_with_a_set_is_said_of_the_set(corpus, tmp_path):
    with pytest.raises(
        DataError, match=r"held-out set news: .*nowhere\.txt.* correct data\.held_out\.news\.paths"
    ):
        prepare(corpus(held_out={"news": "nowhere.txt"}), BYTES)
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(DataError, match=r"held-out set news: .*empty.*data\.held_out\.news"):
        prepare(corpus(held_out={"news": str(tmp_path / "blank.txt")}), BYTES)
    for name in ("validation", "validation_a", "a b"):
        with pytest.raises(ValueError, match=rf"data\.held_out\.{name}"):
            corpus(held_out={name: "a.txt"})
    part = Corpus(source=corpus().source, held_out={"a": "a.txt"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"data\.components\.x\.held_out has no effect in a mix"):
        Mix(components={"x": part}, weights={"x": 1})


# --- parts of the road


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_duplicates_found_on_disk_are_those_found_in_memory(tmp_path, n):
    rng = generator(0, "hashes")
    index = np.zeros(n, INDEX)
    index["high"] = rng.integers(0, 1 << 63, 40, np.uint64)[rng.integers(0, 40, n)] << np.uint64(1)
    index["low"] = rng.integers(0, 40, n)
    seen: set[tuple[int, int]] = set()
    expected = []
    for pair in zip(index["high"].tolist(), index["low"].tolist(), strict=True):
        expected.append(pair in seen)
        seen.add(pair)
    assert mark_duplicates(index, tmp_path, in_memory=100).tolist() == expected


def test_windows_are_shared_whatever_the_indentation_and_blank_lines():
    text = b"a\nb\nc\nd\ne\n"
    assert len(windows(text)) == 2
    assert windows(b"  a\r\n\n\tb\nc\n\n\nd  \ne").tolist() == windows(text).tolist()
    assert np.isin(windows(b"x\na\nb\nc\nd\ny\n"), windows(text)).sum() == 1
    assert len(windows(b"a\nb\n")) == len(windows(b"a")) == 1
    assert len(windows(b" \n\n")) == 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_tokenizer_is_trained_on_parts_by_weight_the_small_ones_again(tmp_path, stack):
    spooled = {}
    for name, n_lines in (("large", 9000), ("small", 90)):
        folder = tmp_path / name
        folder.mkdir()
        source = write_documents(
            tmp_path / f"{name}.jsonl", [name + prose(i, n_lines // 9) for i in range(9)]
        )
        spool_documents(Corpus(source=source), folder, lambda done, total: None)
        spooled[name] = stack.enter_context(Spool(folder)), open_index(folder / "index")
    total = sum(int(index["bytes"].sum()) for _, index in spooled.values())
    shares = {"large": 0.75, "small": 0.25}
    given = Counter[str]()
    for text in training_text(spooled, shares):
        given[text[:5]] += len(text)
        if given.total() > total // 2:  # in proportion all the way, so that a reader may stop where it likes
            assert given["large"] / given.total() == pytest.approx(0.75, abs=0.15)
    assert total <= given.total() < total + 80_000
    assert given["large"] / given.total() == pytest.approx(0.75, abs=0.05)


def test_a_mix_has_shards_of_each_part_under_one_tokenizer(tmp_path):
    parts = {
        name: Corpus(
            source=write_documents(tmp_path / f"{name}.jsonl", [prose(seed + i, 200) for i in range(20)])
        )
        for name, seed in (("a", 0), ("b", 100))
    }
    mix = Mix(components=parts, weights={"a": 1, "b": 3}, cache=str(tmp_path / "cache"))
    tokenizer = SentencePiece(vocab_size=400, n_sentinels=0, max_training_bytes=50_000)
    prepared = prepare(mix, tokenizer)
    assert [(part.name, part.weight) for part in prepared.train] == [("a", 0.25), ("b", 0.75)]
    assert list(prepared.validation) == ["a", "b"]
    for part in prepared.train:
        assert part.shards.tokenizer_hash == prepared.tokenizer.hash
        seed = {"a": 0, "b": 100}[part.name]
        own = {line for i in range(20) for line in prose(seed + i, 200).splitlines()}
        found = {line for text in documents_of(prepared, part.shards) for line in text.splitlines()}
        assert found < own
    assert prepare(mix, tokenizer).folder == prepared.folder


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
