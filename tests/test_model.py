"""A model is a pure function of (config, seed), and step by step it is the same function as all at once."""

import pytest
import torch
from torch import Tensor, nn

from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Layer, Model, ModelConfig, TokenHead, Trunk
from llmtrain.nn.roles import Role, roles
from llmtrain.objectives.causal import CausalLM
from llmtrain.types import NO_DOC, Seq, Visibility
from tests.tiny import DENSE, VOCAB, model_of, noise, stream

architectures = pytest.mark.parametrize("cfg", DENSE.values(), ids=DENSE.keys())
CLM = CausalLM()


def with_cross(cfg: ModelConfig) -> ModelConfig:
    return ModelConfig(**{**vars(cfg), "cross": CrossAttention(head_dim=8)})


def two_streams(cfg: ModelConfig) -> Model:
    """An encoder and a decoder, in float64."""
    head = TokenHead(32, VOCAB.size)
    model = Model(with_cross(cfg), Visibility.CAUSAL, vocab_size=VOCAB.size, head=head, encoder=True)
    initialise(model, n_layers=cfg.shape[0], seed=0)
    return model.double()


# initialisation


@architectures
def test_initial_weights_are_a_function_of_seed_and_name(cfg):
    deeper = ModelConfig(**{**vars(cfg), "n_layers": 3})
    first, second = CLM.build(cfg, VOCAB.size), CLM.build(deeper, VOCAB.size)
    for model in (first, second):
        initialise(model, n_layers=2, seed=5)
    theirs = dict(second.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in first.named_parameters())
    again = model_of(CLM, cfg, seed=6)
    assert not any(torch.equal(p, theirs[name]) for name, p in again.named_parameters() if p.ndim > 1)


class Pair(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


def test_the_order_of_parameters_does_not_matter_and_names_draw_apart():
    one, other = Pair("a", "b"), Pair("b", "a")
    for module in (one, other):
        initialise(module, n_layers=1, seed=0)
    assert torch.equal(one.a.weight, other.a.weight)
    assert not torch.equal(one.a.weight, one.b.weight)
    assert not one.a.bias.any()


def test_a_model_in_another_dtype_starts_from_the_same_draws():
    cfg = DENSE["plain"]
    wide = CLM.build(cfg, VOCAB.size).double()
    initialise(wide, n_layers=2, seed=0)
    narrow = dict(model_of(CLM, cfg).named_parameters())
    assert all(torch.equal(p.float(), narrow[name]) for name, p in wide.named_parameters())


def test_initial_scales_are_those_of_the_docstring():
    cfg = ModelConfig(
        n_layers=8,
        d_model=128,
        layers=(Layer(mixer=Attention(head_dim=32), mlp=SwiGLU()),),
        tie_embeddings=False,
    )
    model = model_of(CLM, cfg)
    for name, role in roles(model).items():
        p = model.get_parameter(name)
        if role.kind == "vector":
            assert (p == 1).all(), name
        else:
            expected = p.shape[-1] ** -0.5 / (4 if role.residual else 1)  # sqrt(2 x 8) = 4
            assert p.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(p.mean().item()) < 0.05 * expected * 3, name


def test_a_module_may_say_how_its_own_parameters_begin():
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.empty(3))

        def initial(self, name: str, generator: torch.Generator) -> Tensor:
            assert name == "rate"
            return torch.rand(3, generator=generator) - 5

    module = nn.ModuleDict({"inner": Decay()})
    initialise(module, n_layers=1, seed=0)
    assert (module["inner"].rate < -4).all()


# step by step


def cuts_of(seq: Seq, visibility: Visibility) -> list[list[int]]:
    """Ways to cut a stream into pieces, none of which parts a prefix: token by token as far as it goes, and longer."""
    n = seq.doc.shape[1]
    inside = (seq.prefix[:, 1:] & (seq.pos[:, 1:] > 0)).any(0).tolist()
    finest = [i for i in range(1, n) if not inside[i - 1]]
    return [finest, finest[1::3], []]


@pytest.mark.parametrize("visibility", Visibility)
@architectures
@torch.no_grad()
def test_step_by_step_equals_forward(cfg, visibility):
    seq = stream(((6, 5), (1, 2, 6), (11,)), 12, visibility)
    trunk = Trunk(cfg, visibility).double()
    for i, p in enumerate(trunk.parameters()):
        p.data = noise(*p.shape, seed=i) * (0.3 if p.ndim > 1 else 1.0)
    x = noise(*seq.doc.shape, 32, seed=7)
    whole = trunk(x, seq).h
    ways = cuts_of(seq, visibility)
    assert visibility is not Visibility.CAUSAL or ways[0] == list(range(1, 12))
    for cuts in ways:
        state, out = trunk.init_state(len(x)), []
        for start, end in zip([0, *cuts], [*cuts, 12], strict=True):
            h, state = trunk.step(x[:, start:end], Seq(*(part[:, start:end] for part in seq)), state)
            out.append(h)
        torch.testing.assert_close(torch.cat(out, 1), whole, rtol=0, atol=1e-12)


@architectures
@torch.no_grad()
def test_a_decoder_steps_through_its_source_as_forward_does(cfg):
    model = two_streams(cfg)
    target, source = stream(((3, 4), (7,)), 8), stream(((5, 2), (6,)), 7, Visibility.BIDIRECTIONAL)
    whole = model(target, source).h
    memory = model.encoder(model.embed(source.ids), source).h
    state, out = model.init_state(2), []
    for i in range(8):
        at = Seq(*(part[:, i : i + 1] for part in target))
        h, state = model.trunk.step(model.embed(at.ids), at, state, (memory, source))
        out.append(h)
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=0, atol=1e-12)


# what the model is made of


@architectures
@torch.no_grad()
def test_taps_are_the_activations_between_blocks(cfg):
    model = model_of(CLM, cfg).double()
    seq = stream(((6, 5), (12,)), 12)
    seen: list[Tensor] = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out.h))
    h = model(seq).h
    x = model.embed(seq.ids)
    taps = model.trunk.taps(x, seq, [0, 1, 2])
    assert [torch.equal(taps[i], y) for i, y in enumerate([x, *seen[:2]])] == [True] * 3
    assert torch.equal(model.trunk.norm(taps[2]), h)
    assert list(model.trunk.taps(x, seq, {1})) == [1]


@architectures
@torch.no_grad()
def test_a_source_token_changes_exactly_the_targets_of_its_document(cfg):
    model = two_streams(cfg)
    target, source = stream(((3, 1, 2), (4, 3)), 7), stream(((2, 4), (1, 3, 2)), 7, Visibility.BIDIRECTIONAL)
    before = model(target, source).h
    for j in range(7):
        other = source.ids.clone()
        other[:, j] = 17 + (other[:, j] - 16) % 40
        assert (other != source.ids).all(0)[j] or (source.doc[:, j] == NO_DOC).any()
        changed = (model(target, source._replace(ids=other)).h != before).any(-1)
        same = (target.doc == source.doc[:, j : j + 1]) & (source.doc[:, j : j + 1] != NO_DOC)
        assert torch.equal(changed, same)


@pytest.mark.parametrize("tie", [True, False])
def test_the_head_reads_the_embedding_exactly_where_they_are_tied(tie):
    model = model_of(CLM, ModelConfig(**{**vars(DENSE["plain"]), "tie_embeddings": tie}))
    assert (model.head.weight is model.embed.weight) == tie
    kinds = [role.kind for role in roles(model).values()]
    assert (kinds.count("embedding"), kinds.count("head")) == (1, 0 if tie else 1)


@architectures
def test_every_parameter_has_a_role_that_fits_its_shape(cfg):
    model = two_streams(cfg)
    found = roles(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, role in found.items():
        p = model.get_parameter(name)
        assert (p.ndim == 1) == (role.kind == "vector"), name
        assert not role.splits or sum(role.splits) == p.shape[-2], name
    writers = {name for name, role in found.items() if role.residual}
    assert writers == {
        name for name in found if name.endswith(("out.weight", "down.weight")) or ".after." in name
    }
    assert found["trunk.blocks.0.mixer.qkv.weight"].splits[0] == 32
    assert found["embed.weight"] == Role("embedding")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(head_dim=7), "head_dim must be even"),
        (lambda: Attention(window=0), "window must be at least 1"),
        (
            lambda: Attention(head_dim=24).build(32, Visibility.CAUSAL),
            "d_model=32 is no multiple of head_dim=24",
        ),
        (
            lambda: Attention(head_dim=8, kv_group=3).build(32, Visibility.CAUSAL),
            "4 heads of 8, not a multiple",
        ),
        (lambda: ModelConfig(layers=()), "layers is empty"),
        (lambda: ModelConfig(layers=(Layer(mixer=Attention()),)).shape, "no n_layers or no d_model"),
        (lambda: CausalLM(z_loss=-1.0), "z_loss must not be negative"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()
