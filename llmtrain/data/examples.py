"""The run's rows as examples, addressed by their number: what a DataLoader's workers make."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from llmtrain import philox
from llmtrain.data.collate import collate
from llmtrain.data.cursor import START, Cursor
from llmtrain.data.rows import Rows, Stream
from llmtrain.types import Row, Vocab

# seconds for a batch: what a worker cannot put into shared memory is lost, and nobody would ever hear of it
PATIENCE = 600


@runtime_checkable
class Maker(Protocol):
    """What an objective is to the data."""

    def example(self, row: Row, vocab: Vocab, *, seq_len: int, rng: np.random.Generator) -> Any: ...


class Examples(Dataset):
    """Example k of a run, a pure function of (seed, k): nothing depends on workers, ranks or what came before."""

    def __init__(
        self, parts: Sequence[Rows], stream: Stream, maker: Maker, vocab: Vocab, *, seq_len: int, seed: int
    ):
        self.parts, self.stream, self.maker, self.vocab = parts, stream, maker, vocab
        self.seq_len, self.seed = seq_len, seed

    def __getitem__(self, k: int) -> Any:
        part, epoch, row = self.stream.locate(k)
        # by name, as the order: a part's corruption stays when another joins the mix
        rng = philox.generator(self.seed, f"example of {self.stream.names[part]}", epoch, row)
        numbered = self.parts[part][row]._replace(number=k)
        return self.maker.example(numbered, self.vocab, seq_len=self.seq_len, rng=rng)


class RankRows(Sampler[int]):
    """The rows of one rank from the cursor to the end of the run: of every micro batch its own share.

    ``n_rows`` are those of all ranks. Both may be set anew between two passes over it.
    """

    def __init__(self, *, n_rows: int, micro_rows: int, rank: int, world: int, cursor: Cursor = START):
        self.cursor, self.n_rows = cursor, n_rows
        self.micro_rows, self.rank, self.world = micro_rows, rank, world

    def __iter__(self) -> Iterator[int]:
        return map(self.cursor.row, self.positions(self.rank, self.n_rows))

    def __len__(self) -> int:
        return self.n_rows // self.world

    def positions(self, rank: int, n_rows: int) -> Iterator[int]:
        """Of the next ``n_rows`` rows from a cursor on, those that are ``rank``'s."""
        stride = self.micro_rows * self.world
        for micro in range(rank * self.micro_rows, n_rows, stride):
            yield from range(micro, micro + self.micro_rows)


def loader(examples: Examples, rows: RankRows, *, workers: int) -> DataLoader:
    return DataLoader(
        examples,
        batch_size=rows.micro_rows,
        sampler=rows,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        timeout=PATIENCE if workers else 0,
        worker_init_fn=leave_signals_to_the_trainer,
        generator=torch.Generator(),  # its own: a new start must not draw from the one that the run saves
    )


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore, in a loader's worker, what stops a run: the training process ends its step first, then its workers.

    Ctrl-C and a scheduler's signal reach the whole process group, and a worker that ends at once fails the step.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
