"""Denoising as an objective: lengths, what sees what, losses, mixtures."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.objectives.denoising import Denoising
from llmtrain.objectives.layouts import Translated
from llmtrain.objectives.mixture import Mixture
from llmtrain.objectives.noise import BartNoise, Noise, SpanNoise, SuffixNoise
from llmtrain.ops import backend
from llmtrain.types import IGNORE, N_FIXED, NO_DOC, PAD, Row, Visibility, Vocab
from tests.spelt import SPOKEN
from tests.tiny import DENSE, VOCAB, batch_of, examples_of, model_of, words

CFG = dataclasses.replace(DENSE["plain"], cross=CrossAttention(head_dim=8))
LAYOUTS = ("encoder_decoder", "prefix", "causal")
layouts = pytest.mark.parametrize("layout", LAYOUTS)
UL2: tuple[Noise, ...] = (
    SpanNoise(mode="R"),
    SpanNoise(mode="R", mean=8.0),
    SpanNoise(mode="X", rate=0.5),
    SpanNoise(mode="X", rate=0.5, mean=8.0),
    SpanNoise(mode="X", mean=64.0),
    SpanNoise(mode="X", rate=0.5, mean=64.0),
    SuffixNoise(mode="S"),
)
NOISES: dict[str, Noise] = {
    "spans": SpanNoise(),
    "many": SpanNoise(rate=0.5, mode="X"),
    "suffix": SuffixNoise(mode="S"),
    "bart": BartNoise(delete=0.1),
}
OBJECTIVES = {
    f"{name}_{layout}": Denoising(noise=noise, layout=layout)
    for (name, noise), layout in itertools.product(NOISES.items(), LAYOUTS)
} | {f"ul2_{layout}": Mixture(noises=UL2, layout=layout) for layout in LAYOUTS}
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())

# lengths


@pytest.mark.parametrize(
    ("seq_len", "rate", "mean", "raw", "targets", "sentinels"),
    [
        (512, 0.15, 3.0, 568, 114, 28),
        (512, 0.15, 8.0, 588, 100, 11),
        (512, 0.5, 3.0, 766, 512, 128),
        (512, 0.5, 8.0, 908, 512, 57),
        (512, 0.15, 64.0, 600, 92, 1),
        (512, 0.5, 64.0, 1006, 512, 8),
        (1024, 0.15, 3.0, 1137, 229, 57),
        (1024, 0.5, 3.0, 1534, 1024, 256),
    ],
)
def test_rows_are_full(seq_len, rate, mean, raw, targets, sentinels):
    objective = Denoising(noise=SpanNoise(rate=rate, mean=mean))
    assert (objective.raw_len(seq_len), *objective.shape(seq_len)) == (raw, seq_len, targets)
    assert max(objective.shape_of(raw + 1)) > seq_len
    enough = Vocab(*SPOKEN._replace(n_reserved=N_FIXED + sentinels))
    objective.check_vocab(enough, seq_len)
    with pytest.raises(ValueError, match=f"needs {sentinels} .* set tokenizer.n_sentinels={sentinels}"):
        objective.check_vocab(enough._replace(n_reserved=enough.n_reserved - 1), seq_len)


@objectives
def test_rows_have_one_shape_and_score_what_is_promised(objective):
    seq_len = 64
    raw = [
        words(objective.raw_len(seq_len), documents=1 + i % 3, seed=i)._replace(number=i) for i in range(14)
    ]
    batch = examples_of(objective, raw, seq_len=seq_len)  # which are stacked, so they have one shape
    per_row = (batch.targets != IGNORE).sum(1).double()
    assert per_row.mean().item() == pytest.approx(objective.scored(seq_len))
    assert (batch.scored == objective.scored(seq_len)).all()
    if isinstance(objective, Denoising):
        assert (per_row == objective.scored(seq_len)).all()
    first, *_ = objective.passes(seq_len)
    stream = batch.source if isinstance(batch, Translated) else batch.text
    assert stream.ids.shape[1] == first.tokens <= seq_len
    assert sum(one.share for one in objective.passes(seq_len)) == pytest.approx(2 if objective.encoder else 1)


@objectives
def test_a_prefix_is_what_the_layout_promises(objective):
    batch = batch_of(objective, documents=3)
    if isinstance(batch, Translated):
        assert not batch.target.prefix.any() and batch.source.prefix.all()
        assert objective.sees is Visibility.CAUSAL
    elif objective.layout == "causal":
        assert not batch.text.prefix.any()
    else:
        assert batch.text.prefix.any(1).all() and not batch.text.prefix[batch.targets != IGNORE].any()


def test_what_is_too_short_is_refused_with_the_least_length():
    objective = Denoising(layout="prefix")
    with pytest.raises(ValueError, match=r"seq_len=4 is too short .* at least 5"):
        objective.check(CFG, seq_len=4, one_document=True)
    objective.check(CFG, seq_len=5, one_document=True)
    with pytest.raises(ValueError, match="mean must be at least 1"):
        SpanNoise(mean=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        SpanNoise(rate=1.0)


# visibility, through a whole model


@layouts
def test_a_target_changes_no_output_before_it_and_a_document_none_of_another(layout):
    objective = Denoising(noise=SpanNoise(rate=0.5), layout=layout)
    model, batch = model_of(objective, CFG).double(), batch_of(objective, rows=1)
    stream = batch.target if isinstance(batch, Translated) else batch.text
    source = batch.source if isinstance(batch, Translated) else None

    def heard(of: torch.Tensor) -> torch.Tensor:
        """[T S]: how much each output hears of each input embedding of a stream."""
        embedded = []
        hook = model.embed.register_forward_hook(
            lambda module, args, out: embedded.append(out.detach().requires_grad_()) or embedded[-1]
        )
        h = model(stream, source).h[0]
        hook.remove()
        x = next(e for e, ids in zip(embedded, order, strict=True) if ids is of)
        return torch.stack(
            [torch.autograd.grad(o.sum(), x, retain_graph=True)[0][0].norm(dim=-1) for o in h * noise]
        )

    order = [source.ids, stream.ids] if source is not None else [stream.ids]
    noise = torch.randn(
        len(stream.ids[0]), 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    own = heard(stream.ids) > 1e-12
    doc, answer = stream.doc[0], (stream.ids[0] >= 0) & ~stream.prefix[0]
    same = doc[:, None] == doc[None]
    later = torch.ones_like(own).triu(1)
    assert torch.equal(own, same & ~(later.bool() & answer[None]))
    if source is not None:
        assert torch.equal(heard(source.ids) > 1e-12, doc[:, None] == source.doc[0][None])


# losses


@objectives
def test_the_loss_is_nats_over_a_constant_and_the_head_sees_what_is_scored(objective):
    batch, model = batch_of(objective, rows=7), model_of(objective, CFG).double()
    out = objective.loss(model, batch)
    streams = (batch.target, batch.source) if isinstance(batch, Translated) else (batch.text,)
    logits = model.head(model(*streams).h)
    nats = F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORE, reduction="none").sum(
        1
    )
    torch.testing.assert_close(out.nats, nats)
    torch.testing.assert_close(out.loss, nats.sum() / (7 * objective.scored(24)))
    assert torch.equal(out.counts, (batch.targets != IGNORE).sum(1).double())


@objectives
def test_padded_rows_of_evaluation_score_what_they_have(objective):
    n = objective.raw_len(24)
    rows = []
    for i, real in enumerate((1, 2, n // 2, n - 1, n)):
        raw = words(n, documents=2, seed=i)
        keep = np.arange(n) < real
        rows.append(Row(np.where(keep, raw.ids, PAD), np.where(keep, raw.doc, NO_DOC), i))
    batch = examples_of(objective, rows, seq_len=24)
    out = objective.loss(model_of(objective, CFG), batch)
    assert torch.isfinite(out.nats).all() and (out.counts >= 1).all()
    assert out.counts[0] < out.counts[-2]


@layouts
def test_it_learns_a_batch(layout):
    objective = OBJECTIVES[f"spans_{layout}"]
    model, batch = model_of(objective, CFG), batch_of(objective, rows=7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scores = []
    for _ in range(25):
        out = objective.loss(model, batch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        scores.append((out.nats.sum() / out.counts.sum()).item())
    assert scores[-1] < 0.6 * scores[0]


@objectives
def test_flops_are_what_torch_counts(objective):
    model, batch = model_of(objective, CFG), batch_of(objective, rows=7, documents=1)
    with backend.force(attention="reference"), FlopCounterMode(display=False) as counter:
        objective.loss(model, batch).loss.backward()
    expected = flops(CFG, objective, 24, vocab_size=VOCAB.size).counter
    assert counter.get_total_flops() == pytest.approx(7 * expected, abs=7)  # shares of a seventh are rounded


# mixtures


def test_the_row_s_number_says_which_noise_it_gets_and_the_end_of_the_row_is_dropped():
    mixture = Mixture(noises=UL2, layout="prefix")
    assert mixture.raw_len(24) == max(one.raw_len(24) for one in mixture.denoisers)
    raw = words(mixture.raw_len(24))
    for number in range(14):
        one = mixture.denoisers[number % 7]
        n = one.raw_len(24)
        made = mixture.example(raw._replace(number=number), VOCAB, seq_len=24, rng=np.random.default_rng(5))
        alone = one.example(Row(raw.ids[:n], raw.doc[:n]), VOCAB, seq_len=24, rng=np.random.default_rng(5))
        length = len(alone.text.ids)
        for padded, plain in zip(made.text, alone.text, strict=True):
            assert (padded[:length] == plain).all()
        assert (made.text.doc[length:] == NO_DOC).all() and (made.targets[length:] == IGNORE).all()
        scored = made.targets[made.where]
        assert (scored[scored != IGNORE] == alone.targets[alone.where]).all()


def test_a_mixture_is_scored_noise_by_noise():
    mixture = Mixture(noises=(*UL2, UL2[0]), layout="causal")
    found = mixture.evaluations()
    assert found == tuple(Denoising(noise=noise, layout="causal") for noise in UL2)
    assert [one.score_name for one in found][::6] == [
        "denoising_r15_m3_nats_per_token",
        "denoising_suffix_r25_nats_per_token",
    ]
    assert len({one.score_name for one in found}) == 7
    with pytest.raises(ValueError, match="share a name"):
        Mixture(noises=(SpanNoise(mode="R"), SpanNoise(mode="X")))
    with pytest.raises(ValueError, match="noises is empty"):
        Mixture(noises=())


# samples


@objectives
def test_samples_show_what_was_given_with_its_gaps(objective):
    model = model_of(objective, CFG)
    rows = [words(objective.evaluations()[0].raw_len(24), documents=2, seed=i) for i in range(2)]
    decode = lambda ids: "".join(chr(ord("a") + i % 26) for i in ids)  # noqa: E731 - as a tokenizer's
    found = objective.samples(model, rows, VOCAB, decode, seq_len=24, seed=0)
    assert len(found) == 2
    if "r15" in objective.evaluations()[0].score_name:
        assert "<0>" in found[0].given and found[0].given.startswith("[R] ") == isinstance(objective, Mixture)
    assert found == objective.samples(model, rows, VOCAB, decode, seq_len=24, seed=0)
