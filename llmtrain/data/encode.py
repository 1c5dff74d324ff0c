"""Text to token ids on every core, in chunks that are files of their own: a killed preparation goes on from the last.

Each process is this module run as a program, so that none holds torch or a lock of the parent's, and all end when the
parent does, however it does: their input ends.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmtrain.data.shard_writer import ShardWriter
from llmtrain.data.spool import blocks, open_index
from llmtrain.data.stages import flush
from llmtrain.data.tokenizers.base import Tokenizer, load_tokenizer
from llmtrain.errors import DataError, StorageError, UserError

_CHUNK = 1 << 21  # bytes of text
_WORTH_A_PROCESS = 1 << 22  # bytes: fewer are tokenized sooner than a process starts


class Chunk(NamedTuple):
    """Records ``start`` to ``stop`` of an index, and where their ids go."""

    start: int
    stop: int
    n_bytes: int
    path: Path


class Job(NamedTuple):
    """What all chunks of one index share, by path, so that any process can take any chunk."""

    text: Path
    records: Path  # index file
    tokenizer: Path
    chunks: Path  # folder


def write_shards(
    job: Job,
    folder: Path,
    meta: Mapping[str, str],
    *,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Tokenize what ``job`` names into shards at ``folder``, if they are not there; chunks of a killed start are taken.

    ``progress`` gets the bytes done and in all.
    """
    if folder.exists():
        return
    tokenizer, chunks = load_tokenizer(job.tokenizer), plan(job)
    done, total = 0, sum(chunk.n_bytes for chunk in chunks)
    for n_bytes in encode(job, chunks, workers=workers):
        done += n_bytes
        progress(done, total)
    with ShardWriter(folder, tokenizer.vocab(), {"tokenizer_hash": tokenizer.hash, **meta}) as writer:
        for ids, n_bytes in sections(chunks):
            writer.add(ids, n_bytes)


def plan(job: Job) -> list[Chunk]:
    """The chunks of a job, in order; the same at every start."""
    index = open_index(job.records)
    size = max(_CHUNK, int(index["bytes"].sum()) >> 12)  # at most some thousand files
    chunks: list[Chunk] = []
    start = stop = n_bytes = 0
    for block in blocks(index):
        for added in block["bytes"].tolist():
            stop, n_bytes = stop + 1, n_bytes + added
            if n_bytes >= size or stop == len(index):
                chunks.append(Chunk(start, stop, n_bytes, job.chunks / f"{len(chunks):06d}.npz"))
                start, n_bytes = stop, 0
    return chunks


def encode(job: Job, chunks: list[Chunk], *, workers: int | None) -> Iterator[int]:
    """Write the chunks that are not there yet; yields the bytes of text of each one done, there before or not.

    ``workers`` processes; None takes one a core where there is enough text for them. The files do not depend on it.
    """
    job.chunks.mkdir(parents=True, exist_ok=True)
    missing = [chunk for chunk in chunks if not chunk.path.exists()]
    yield sum(chunk.n_bytes for chunk in chunks) - (left := sum(chunk.n_bytes for chunk in missing))
    n = min(_cores(), left // _WORTH_A_PROCESS) if workers is None else workers
    if min(n, len(missing)) > 1:
        yield from _encode_in_processes(job, missing, min(n, len(missing)))
    else:
        tokenizer = load_tokenizer(job.tokenizer)
        for chunk in missing:
            _encode_chunk(job, chunk, tokenizer)
            yield chunk.n_bytes


def sections(chunks: list[Chunk]) -> Iterator[tuple[np.ndarray, int]]:
    """(ids, bytes of text) of each section, from the chunks' files in order."""
    for chunk in chunks:
        with np.load(chunk.path, allow_pickle=False) as arrays:
            ids, lengths, n_bytes = arrays["ids"], arrays["lengths"], arrays["n_bytes"]
        start = 0
        for length, size in zip(lengths.tolist(), n_bytes.tolist(), strict=True):
            yield ids[start : start + length], size
            start += length


def _encode_chunk(job: Job, chunk: Chunk, tokenizer: Tokenizer) -> None:
    records = np.array(open_index(job.records)[chunk.start : chunk.stop])
    texts = []
    with job.text.open("rb") as file:
        for record in records:
            file.seek(int(record["start"]))
            texts.append(file.read(int(record["bytes"])).decode())
    ids = tokenizer.encode_batch(texts)
    lengths = np.array([len(i) for i in ids], np.int64)
    partial = chunk.path.with_suffix(".tmp")
    try:
        with partial.open("wb") as file:
            np.savez(
                file, ids=np.concatenate(ids), lengths=lengths, n_bytes=records["bytes"].astype(np.int64)
            )
        flush(partial)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.rename(chunk.path)


def _encode_in_processes(job: Job, chunks: list[Chunk], n: int) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(_process(job)) for _ in range(n)]
        busy: dict[int, tuple[subprocess.Popen, Chunk]] = {}
        left = iter(chunks)
        while True:
            while idle and (chunk := next(left, None)):
                process = idle.pop()
                assert process.stdin and process.stdout
                _send(process, chunk)
                busy[process.stdout.fileno()] = process, chunk
            if not busy:
                return
            for ready in select.select(list(busy), [], [])[0]:
                process, chunk = busy.pop(ready)
                _receive(process)
                yield chunk.n_bytes
                idle.append(process)


def _process(job: Job) -> subprocess.Popen:
    """A process that waits for chunks; it ends, the chunk in hand finished, when its input does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "llmtrain.data.encode", *map(str, job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        bufsize=0,
        close_fds=False,  # it shares the lock on the cache until it ends
        process_group=0,  # ctrl-C is the parent's to handle
    )


def _send(process: subprocess.Popen, chunk: Chunk) -> None:
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it died; reading its answer says why
        process.stdin.write((json.dumps([*chunk[:3], str(chunk.path)]) + "\n").encode())


def _receive(process: subprocess.Popen) -> None:
    """Wait for the answer of a process to one chunk; raise here what was raised there."""
    assert process.stdout
    if not (line := process.stdout.readline()):
        status = process.wait()
        assert status < 0, "a process that tokenizes failed; its traceback is above"
        raise StorageError(
            f"a process that tokenizes was killed by signal {-status} (9: as when memory runs out); start again, "
            "with a smaller data.workers if memory was short: what is done is kept"
        )
    answer = json.loads(line)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"])
    if "error" in answer:
        raise DataError(answer["error"])


def _serve(job: Job) -> None:
    """Answer each chunk named on a line of standard input by a line on standard output."""
    tokenizer = load_tokenizer(job.tokenizer)
    for line in sys.stdin:
        start, stop, n_bytes, path = json.loads(line)
        answer: dict[str, str | int | None] = {}
        try:
            _encode_chunk(job, Chunk(start, stop, n_bytes, Path(path)), tokenizer)
        except UserError as error:
            answer = {"error": str(error)}
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror}
        with contextlib.suppress(BrokenPipeError):  # the parent was killed: the input has ended too
            os.write(1, (json.dumps(answer) + "\n").encode())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    _serve(Job(*map(Path, sys.argv[1:])))
