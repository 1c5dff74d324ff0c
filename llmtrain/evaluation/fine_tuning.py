"""A short fine-tuning of all weights, beside the frozen probe: what a few steps make of a model."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmtrain import philox
from llmtrain.evaluation.base import Measured
from llmtrain.evaluation.feature_settings import FineTuning
from llmtrain.evaluation.features import beginnings, padded_rows, stream
from llmtrain.evaluation.probe import items_of, numbers
from llmtrain.evaluation.standard_errors import standard_error
from llmtrain.evaluation.subject import Subject
from llmtrain.evaluation.tasks import Classification, Example

_ROWS = 64  # of a batch that is only read


class _Texts(NamedTuple):
    ids: list[list[int]]
    y: np.ndarray


def fine_tune(task: Classification, subject: Subject, cfg: FineTuning) -> list[Measured]:
    """Accuracy on test after training all weights and a linear head on the mean of the last layer.

    The head begins at zero; order and batches are the same for every model; the routers' balance losses and dropout
    are left out. An encoder-decoder is its encoder. The subject itself is not changed.
    """
    labels = sorted({example.label for example in task.train})
    train, dev, test = (_texts(subject, part, labels, cfg) for part in (task.train, task.dev, task.test))
    tuned = {rate: _tuned(subject, train, len(labels), rate, cfg) for rate in cfg.rates}
    on_dev = {rate: float((_predicted(*one, dev) == dev.y).mean()) for rate, one in tuned.items()}
    rate = max(on_dev, key=lambda r: on_dev[r])
    right = (_predicted(*tuned[rate], test) == test.y).astype(np.float64)
    items = items_of(task.test, right)
    return [
        Measured(
            yardstick=f"fine_tuning_{task.name}",
            kind="fine_tuning",
            split="test",
            metric="accuracy",
            value=float(right.mean()),
            better="higher",
            n=len(right),
            items=items,
            item_se=standard_error(items),
            chance=float((test.y == np.bincount(train.y).argmax()).mean()),
            ceiling=1.0,
            summary=task.summary,
            choices={"lr": rate, "steps": cfg.steps},
            note=task.note,
        )
    ]


def _texts(subject: Subject, part: Sequence[Example], labels: list[str], cfg: FineTuning) -> _Texts:
    assert all(e.input.span is None for e in part), "whole texts are fine-tuned on"
    ids = beginnings(subject, [e.input.text for e in part], cfg.tokens)
    return _Texts(ids, numbers([e.label for e in part], labels))


def _tuned(
    subject: Subject, train: _Texts, n_labels: int, rate: float, cfg: FineTuning
) -> tuple[Subject, nn.Linear]:
    model = copy.deepcopy(subject.model)
    table = model.embed.weight
    head = nn.Linear(table.shape[1], n_labels, device=table.device, dtype=table.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    subject = subject._replace(model=model)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / cfg.steps)
    with torch.enable_grad(), padded_rows(subject):
        for chosen in _order(len(train.ids), cfg):
            logits = head(_means(subject, [train.ids[i] for i in chosen]))
            loss = nn.functional.cross_entropy(logits, torch.tensor(train.y[chosen], device=logits.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return subject, head


def _order(n: int, cfg: FineTuning) -> Iterator[np.ndarray]:
    """Numbers of the texts of each step: all of them once, in an order by chance, then again in another."""
    rng = philox.generator(0, "fine-tuning")
    need = cfg.steps * cfg.rows
    order = np.concatenate([rng.permutation(n) for _ in range(-(-need // n))])[:need]
    yield from order.reshape(cfg.steps, cfg.rows)


def _means(subject: Subject, ids: Sequence[list[int]]) -> Float[Tensor, "B D"]:
    seq = stream(subject, ids)
    n_tokens = torch.tensor([len(row) for row in ids], device=seq.ids.device)[:, None]
    text = (seq.pos >= 1) & (seq.pos <= n_tokens)
    h = subject.model.taps(seq)[-1]
    return (h * text[..., None]).sum(1) / n_tokens.clamp_min(1)


@torch.no_grad()
def _predicted(subject: Subject, head: nn.Linear, of: _Texts) -> Int[np.ndarray, " N"]:
    parts = [of.ids[at : at + _ROWS] for at in range(0, len(of.ids), _ROWS)]
    with padded_rows(subject):
        return np.concatenate([head(_means(subject, part)).argmax(1).cpu().numpy() for part in parts])
