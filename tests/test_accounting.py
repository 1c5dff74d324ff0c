"""FLOPs: what torch counts, what a hand counts, and what visibility makes of attention."""

from typing import NamedTuple

import pytest
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops, flops_of, measured_flops
from llmtrain.config import config
from llmtrain.nn.base import Extent
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mlps.gelu import GELU
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, Model, ModelConfig
from llmtrain.objectives.base import Loss, Objective, Pass
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops import backend
from llmtrain.ops.loss import linear_cross_entropy
from llmtrain.ops.mask import mask
from llmtrain.types import Seq, Visibility
from tests.tiny import DENSE, VOCAB, batch_of, model_of, stream

SEQ_LEN = 12


class Translated(NamedTuple):
    source: Seq
    target: Seq
    targets: Int[Tensor, "B T"]


@config
class Translation(CausalLM):
    """Enough of an encoder-decoder objective to count: a source two thirds as long as its target."""

    @property
    def encoder(self) -> bool:
        return True

    def passes(self, seq_len: int) -> tuple[Pass, ...]:
        source = 2 * seq_len // 3
        return Pass("encoder", source), Pass("trunk", seq_len, source=source, scored=seq_len)

    def loss(self, model: Model, batch: Translated) -> Loss:
        h = model(batch.target, batch.source).h
        out = linear_cross_entropy(h.flatten(0, 1), model.head.weight, batch.targets.flatten())
        return Loss(out.total, out.nats, out.nats, ())


def translation_batch(rows: int) -> Translated:
    source, target = (stream(((n,),) * rows, n) for n in (2 * SEQ_LEN // 3, SEQ_LEN))
    return Translated(source, target, target.ids)


def counted(model: Model, objective: Objective, batch: object) -> int:
    with backend.force(attention="reference"), FlopCounterMode(display=False) as counter:
        objective.loss(model, batch).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("cfg", DENSE.values(), ids=DENSE.keys())
def test_flops_counter_is_what_torch_counts_of_a_row(cfg, rows):
    objective = CausalLM(z_loss=1e-4)
    model = model_of(objective, cfg)
    expected = flops(cfg, objective, SEQ_LEN, vocab_size=VOCAB.size)
    assert flops_of(model, objective, SEQ_LEN, 1) == expected
    assert (
        counted(model, objective, batch_of(objective, seq_len=SEQ_LEN, rows=rows)) == rows * expected.counter
    )


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["plain", "gqa", "gelu"])
def test_an_encoder_and_cross_attention_are_counted(name, rows):
    objective = Translation()
    cfg = ModelConfig(**{**vars(DENSE[name]), "cross": CrossAttention(head_dim=8)})
    expected = flops(cfg, objective, SEQ_LEN, vocab_size=VOCAB.size).counter
    assert counted(model_of(objective, cfg), objective, translation_batch(rows)) == rows * expected


@pytest.mark.parametrize("chunk", [1, VOCAB.size * 5, 1 << 22])
def test_the_loss_is_three_products_in_chunks_of_any_size(monkeypatch, chunk):
    monkeypatch.setattr("llmtrain.ops.loss.chunk_elements", lambda device: chunk)
    objective, cfg = CausalLM(), DENSE["mixer_alone"]
    expected = flops(cfg, objective, SEQ_LEN, vocab_size=VOCAB.size).counter
    assert (
        counted(model_of(objective, cfg), objective, batch_of(objective, seq_len=SEQ_LEN, rows=1)) == expected
    )


def test_flops_model_of_a_plain_model_by_hand():
    cfg = ModelConfig(
        n_layers=2, d_model=16, layers=(Layer(mixer=Attention(head_dim=8, kv_group=2), mlp=GELU()),)
    )
    weights = 16 * (16 + 8 + 8) + 16 * 16 + 2 * 16 * 64  # qkv, out, up and down
    pairs = 10 * 11 // 2  # ten tokens, each sees itself and those before
    attention = 2 * 2 * 16 * pairs  # two products of 16 multiply-adds a pair
    head = 2 * 10 * 16 * 100
    found = flops(cfg, CausalLM(), 10, vocab_size=100)
    assert found.model == 3 * (2 * (2 * 10 * weights + attention) + head)
    assert found.counter == 3 * (2 * (2 * 10 * weights + 2 * 2 * 16 * 10 * 10) + head)


def test_flops_model_of_a_window_and_a_gated_mlp_by_hand():
    layer = Layer(mixer=Attention(head_dim=8, window=3), mlp=SwiGLU(ratio=2.0))
    cfg = ModelConfig(n_layers=1, d_model=16, layers=(layer,))
    weights = 4 * 16 * 16 + 3 * 16 * 32
    pairs = 1 + 2 + 8 * 3  # ten tokens that see three at most
    head = 2 * 10 * 16 * 100
    assert flops(cfg, CausalLM(), 10, vocab_size=100).model == 3 * (2 * 10 * weights + 4 * 16 * pairs + head)


def test_flops_model_of_an_encoder_decoder_by_hand():
    layer = Layer(mixer=Attention(head_dim=8), mlp=GELU())
    cfg = ModelConfig(n_layers=1, d_model=16, layers=(layer,), cross=CrossAttention(head_dim=8))
    weights = 4 * 16 * 16 + 2 * 16 * 64
    encoder = 2 * 8 * weights + 4 * 16 * 8 * 8  # eight source tokens, all pairs
    decoder = 2 * 12 * weights + 4 * 16 * (12 * 13 // 2)
    cross = (
        2 * 12 * (2 * 16 * 16) + 2 * 8 * (2 * 16 * 16) + 4 * 16 * 12 * 8
    )  # q and out; k and v; scores and values
    head = 2 * 12 * 16 * 100
    assert flops(cfg, Translation(), 12, vocab_size=100).model == 3 * (encoder + decoder + cross + head)


def test_flops_model_does_not_depend_on_the_backend():
    cfg, objective = DENSE["gqa"], CausalLM()
    by_backend = set()
    for name in ("reference", "masked", "by_document", "tiled"):
        with backend.force(attention=name):
            by_backend.add(flops(cfg, objective, SEQ_LEN, vocab_size=VOCAB.size))
    assert len(by_backend) == 1


@pytest.mark.parametrize("window", [None, *range(1, 14)])
@pytest.mark.parametrize("visibility", Visibility)
def test_pairs_are_those_that_visible_allows(visibility, window):
    for t in range(13):
        for prefix in range(t + 1) if visibility is Visibility.PREFIX else (0,):
            seq = stream(((t,),), t)
            seen = prefix if visibility is Visibility.PREFIX else t * (visibility is Visibility.BIDIRECTIONAL)
            seq = seq._replace(prefix=seq.pos < seen)
            assert Extent(t, visibility, prefix).pairs(window) == mask(seq, seq, window).sum().item()


def test_a_measured_peak_is_positive_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    assert measured_flops(torch.device("cpu"), torch.float32, n=64) > 0
    assert torch.equal(torch.get_rng_state(), before)
