"""What a tokenizer is trained on: the training text, spread evenly, the parts of a mix in proportion."""

from collections.abc import Iterator, Mapping

import numpy as np

from llmtrain.data.spool import Spool

_SAMPLE = 1 << 23  # bytes: about what a tokenizer reads; each run of so many is spread over the whole text


def training_text(
    spooled: Mapping[str, tuple[Spool, np.ndarray]], shares: Mapping[str, float]
) -> Iterator[str]:
    """As many bytes as all parts have, each part giving its share: a small one again, a large one not in full.

    ``spooled``: by part, the text and the index of what of it is for training.
    """
    sizes = {name: int(index["bytes"].sum()) for name, (_, index) in spooled.items()}
    readers = {name: _spread(*part, sizes[name]) for name, part in spooled.items()}
    given = dict.fromkeys(spooled, 0)
    while sum(given.values()) < sum(sizes.values()):
        name = min(given, key=lambda n: given[n] / shares[n])
        text = next(readers[name])
        given[name] += len(text)
        yield text.decode()


def _spread(spool: Spool, index: np.ndarray, n_bytes: int) -> Iterator[bytes]:
    """All texts of ``index``, over and over; in strides, so that the first ones come from everywhere in it."""
    stride = max(1, n_bytes // _SAMPLE)
    while True:
        for first in range(stride):
            for i in range(first, len(index), stride):
                yield spool.text(index[i])
