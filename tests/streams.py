"""Streams of every kind, and how kernels of attention are held against one another on them."""

import pytest
import torch
from torch import Tensor

from llmtrain.ops import backend
from llmtrain.ops.attention import attend
from llmtrain.types import Seq, Visibility
from tests.tiny import MIXED, noise

STREAMS = {
    "mixed": (MIXED, 8),
    "one_document_a_row": (((9,), (9,)), 9),
    "one_token": (((1,), (1,)), 1),
    "documents_of_one_token": (((1, 1, 1, 1), (1, 3)), 4),
    "many_short_documents": (((2, 3, 1, 2, 2, 3, 2, 4, 1), (3,) * 7), 21),
    "padding_alone": (((), ()), 5),
    "short_and_padded": (((3,), (7,), (2, 2)), 10),
}
streams = pytest.mark.parametrize(("rows", "length"), STREAMS.values(), ids=STREAMS.keys())
visibilities = pytest.mark.parametrize("visibility", Visibility)
windows = pytest.mark.parametrize("window", [None, 3])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def heads(
    q: Seq, k: Seq, *, n: int = 4, n_kv: int = 2, d: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    (b, t), s = q.doc.shape, k.doc.shape[1]
    shapes = ((b, n, t, d), (b, n_kv, s, d), (b, n_kv, s, d))
    a, b_, c = (noise(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes))
    return a, b_, c


def value_and_gradients(
    kernel: str,
    qkv: tuple[Tensor, ...],
    q_seq: Seq,
    k_seq: Seq,
    visibility: Visibility,
    window: int | None = None,
) -> list[Tensor]:
    with backend.force(attention=kernel):
        y = attend(*qkv, q_seq, k_seq, visibility=visibility, window=window)
    along = noise(*y.shape, seed=11, dtype=y.dtype)
    nothing = 0 * sum(x.sum() for x in qkv)  # padding alone depends on none of them
    return [y, *torch.autograd.grad((y * along).sum() + nothing, qkv)]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[a.dtype] * max(1.0, b.abs().max().item()))
