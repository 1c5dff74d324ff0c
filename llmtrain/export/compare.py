"""Whether what others open computes what we trained."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import ConfigError
from llmtrain.export.base import Use
from llmtrain.export.tokenizer import TEXTS
from llmtrain.nn.model import Model
from llmtrain.types import BOS, NO_DOC, PAD, Seq, Visibility

_CLOSE = 1e-4  # of the largest number: float32, sums in another order
_ROWS, _LONGEST = 4, 128  # of ids that both read


@torch.no_grad()
def logits(model: Model, use: Use, tokenizer: Tokenizer, folder: Path, *, opens: str, seq_len: int) -> float:
    """The largest difference between the logits of ``model`` and of what ``opens`` makes of ``folder``.

    Both read rows of BOS and of ids drawn from all that text may have. Raises ConfigError where it is more than
    rounding.
    """
    import transformers

    other = getattr(transformers, opens).from_pretrained(folder, dtype=torch.float32).eval()
    ids = _drawn(tokenizer, min(seq_len, _LONGEST))
    text = _sequence(ids, use.visibility)
    if use.encoder:
        source = _sequence(ids.flip(0), Visibility.BIDIRECTIONAL)
        mine, theirs = model(text, source).h, other(input_ids=source.ids, decoder_input_ids=ids).logits
    else:
        mine, theirs = model(text).h, other(input_ids=ids).logits
    return _difference(model.head(mine), theirs, what="logits")


@torch.no_grad()
def embeddings(model: Model, use: Use, tokenizer: Tokenizer, folder: Path, *, seq_len: int) -> float:
    """The same of embeddings of text, of unit length, as ``SentenceTransformer`` makes them."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS), convert_to_tensor=True)
    rows = [[BOS, *tokenizer.encode(text).tolist()][:seq_len] for text in TEXTS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    real = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
    text = _sequence(ids, use.visibility, real)
    return _difference(normalize(model.head(model(text).h, text), dim=-1), theirs, what="embeddings")


def _difference(mine: Tensor, theirs: Tensor, *, what: str) -> float:
    found, allowed = float((mine - theirs).abs().max()), _CLOSE * max(1.0, float(mine.abs().max()))
    if not found <= allowed:  # nor where it is no number
        raise ConfigError(
            f"the exported model is not equal: {what} differ by {found:.2g}, and {allowed:.2g} is rounding; "
            "nothing was left. Please report this with the run's config.yaml"
        )
    return found


def _drawn(tokenizer: Tokenizer, length: int) -> Tensor:
    ids = np.random.default_rng(0).integers(tokenizer.n_reserved, tokenizer.vocab_size, (_ROWS, length))
    ids[:, 0] = BOS
    return torch.from_numpy(ids)


def _sequence(ids: Tensor, visibility: Visibility, real: Tensor | None = None) -> Seq:
    """A document a row; what is not ``real`` is padding."""
    doc = torch.zeros_like(ids)
    doc = doc if real is None else doc.masked_fill(~real, NO_DOC)
    pos = torch.arange(ids.shape[1]).expand_as(ids)
    return Seq(ids, doc, pos, torch.full(ids.shape, visibility is Visibility.BIDIRECTIONAL))
