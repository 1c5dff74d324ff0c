"""At the base nothing changes; beyond it, what each parameter is decides how it begins and how fast it moves."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmtrain.accounting import meta_model
from llmtrain.errors import ConfigError
from llmtrain.loading import load_run
from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.model import Model, ModelConfig
from llmtrain.nn.parametrization import CompleteP, MuP, Parametrization, Standard
from llmtrain.nn.roles import Scale, roles, scales
from llmtrain.objectives.base import Objective, Task
from llmtrain.objectives.causal import CausalLM
from llmtrain.objectives.contrastive import Contrastive
from llmtrain.objectives.denoising import Denoising
from llmtrain.optim.adamw import AdamW
from llmtrain.optim.base import Optim
from llmtrain.optim.muon import Muon
from llmtrain.optim.schedules import Constant
from llmtrain.pretrain import train
from runs import stopped, tiny, weights, without_figures, write_text
from tiny import ARCHS, DENSE, FAMILIES, VOCAB, batch_of

CLM = CausalLM()
OPTIMS: list[Optim] = [
    AdamW(lr=0.01),
    Muon(lr=0.02, adamw_lr=0.01),
    Muon(lr=0.02, adamw_lr=0.01, scale="rms"),
]
BASE = 32  # the width of the architectures
families = pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES)


def sized(cfg: ModelConfig, *, width: int = BASE, depth: int = 2) -> ModelConfig:
    return dataclasses.replace(cfg, d_model=width, n_layers=depth)


def built(
    parametrization: Parametrization, cfg: ModelConfig, objective: Objective = CLM, *, seed: int = 0
) -> Model:
    cfg = parametrization.applied(cfg)
    model = objective.build(cfg, VOCAB.size)
    model.scales = parametrization.scales(cfg, lambda other: meta_model(other, objective, VOCAB.size))
    initialise(model, n_layers=cfg.shape[0], seed=seed)
    return model


def scales_of(
    parametrization: Parametrization, cfg: ModelConfig, objective: Objective = CLM
) -> dict[str, Scale]:
    return scales(built(parametrization, cfg, objective))


def trained(model: Model, objective: Objective, optim: Optim, steps: int) -> list[float]:
    task = Task(model, objective)
    optimizer = optim.build(task, Constant(warmup=0.0), steps)
    batch, losses = batch_of(objective), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task(batch).loss
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return losses


@pytest.mark.parametrize("optim", OPTIMS, ids=["adamw", "muon", "muon_rms"])
@families
def test_at_the_base_every_bit_is_the_standards(cfg, optim):
    objective = Denoising() if cfg is ARCHS["hybrid"] else CLM
    found = {}
    for parametrization in (Standard(), CompleteP(base_width=BASE, base_depth=2)):
        model = built(parametrization, cfg, objective)
        losses = trained(model, objective, optim, 3)
        found[parametrization.label] = losses, model.state_dict()
    (losses, state), (other_losses, other) = found.values()
    assert losses == other_losses
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


def test_what_a_parameter_is_follows_from_the_dimensions_that_grow():
    m = 4.0
    width = int(m) * BASE

    def of(name: str, cfg: ModelConfig, objective: Objective = CLM) -> Scale:
        found = scales_of(MuP(base_width=BASE), sized(cfg, width=width), objective)
        return next(scale for key, scale in found.items() if key.endswith(name))

    def parts(init: tuple[float, ...], rate: float, gradient: float) -> tuple[object, ...]:
        return pytest.approx(init), pytest.approx(rate), pytest.approx(gradient)

    def seen(scale: Scale) -> tuple[object, ...]:
        return scale.init, scale.rate, scale.gradient

    dense, moe, ssm = ARCHS["plain"], ARCHS["moe"], ARCHS["ssm"]
    untied = ARCHS["gqa"]
    hidden, few, gain, neither = 1 / m, 1 / m, 1 / m, 1.0
    # fan-in and fan-out
    assert seen(of("qkv.weight", dense)) == parts((1.0,) * 3, hidden, 1 / m)
    assert seen(of("mlp.gate_up", moe)) == parts((1.0,) * 2, 1 / m, pytest.approx(1 / m, rel=0.1))
    # fan-in alone: the router, and the pooling head's projection
    assert seen(of("router.weight", moe)) == parts((m**-0.5,), few, 1.0)
    contrastive = Contrastive(projection=12)
    assert seen(of("projection.weight", dense, contrastive)) == parts((m**-0.5,), few, 1.0)
    # both in one matrix: z and x and dt are as wide as the model; B and C are not, and begin as if they were
    assert seen(of("in_proj.weight", ssm)) == parts((1.0,) * 5, hidden, 1 / m)
    # vectors: one number a unit, or a few for all of the model
    for name in ("past.A_log", "past.dt_bias", "mixer.D", "mixer.norm.weight"):
        assert seen(of(name, ssm)) == parts((1.0,), 1.0, gain), name
    assert seen(of("past.conv_weight", ssm)) == parts(
        (1.0,), 1.0, pytest.approx(1 / m, rel=0.2)
    )  # of x, B and C
    assert seen(of("q_norm.weight", dense)) == parts((1.0,), 1.0, neither)
    assert seen(of("log_scale", dense, Contrastive(learn_temperature=True))) == parts((1.0,), 1.0, 1.0)
    # tables: of equal entries at any width, whether or not the head has its own
    for name, cfg in (("embed.weight", dense), ("embed.weight", untied), ("head.weight", untied)):
        assert seen(of(name, cfg)) == parts((m**0.5,), 1.0, 1 / m), name


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_a_table_begins_and_moves_alike_at_any_width_as_the_model_reads_it(tie, scale):
    """Whether embeddings are multiplied by sqrt(d_model) or not; and what the head makes of it falls by 1 / m."""
    cfg = dataclasses.replace(DENSE["plain"], tie_embeddings=tie, embed_scale=scale)
    read = []
    for width in (BASE, 4 * BASE):
        model = built(MuP(base_width=BASE), sized(cfg, width=width))
        one = scales(model)["embed.weight"]
        other = scales(model).get("head.weight", one)
        by, m = model.scale or 1.0, width / BASE
        table = model.head.get_parameter("weight")
        read.append(
            [
                by * model.embed.weight.std().item(),
                by * one.rate,
                m * model.readout * table.std().item(),
                m * model.readout * other.rate,
                one.gradient / by * m,
            ]
        )
    assert read[1] == pytest.approx(read[0], rel=0.05)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
def test_what_a_layer_adds_begins_and_moves_by_one_over_depth(norm):
    cfg = dataclasses.replace(DENSE["plain"], norm=norm)
    base, deep = (
        built(CompleteP(base_width=BASE, base_depth=2), sized(cfg, depth=depth)) for depth in (2, 8)
    )
    writer = (
        ("after.mlp.weight", "after.mixer.weight") if norm == "sandwich" else ("out.weight", "down.weight")
    )
    for name, parameter in base.named_parameters():
        one, other = scales(base)[name], scales(deep)[name]
        size = (deep.get_parameter(name).norm() / parameter.norm()).item()
        if name.endswith(writer):
            expected = (1 / 4, 1 / 4, 1.0, 1 / 4)
        elif ".blocks." in name:
            expected = (1.0, 1.0, 1 / 4, 1.0)
        else:
            expected = (1.0, 1.0, 1.0, 1.0)
        found = size, other.rate / one.rate, other.gradient / one.gradient, other.branch / one.branch
        assert found == pytest.approx(expected, rel=1e-5), name


@families
def test_adamw_moves_by_the_rate_of_the_scale_and_decays_as_much_at_any_width(cfg):
    lr, decay = 1e-3, 0.5
    model = built(MuP(base_width=BASE), sized(cfg, width=2 * BASE))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW(lr=lr, weight_decay=decay, clip=None).build(model, Constant(warmup=0.0), 1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    role, scale = roles(model), scales(model)
    for name, p in model.named_parameters():
        kept = 1 - lr * decay * (role[name].kind != "vector")
        expected = before[name] * kept - lr * scale[name].rate  # the first step of Adam is the sign
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["spectral", "rms"])
@families
def test_muon_moves_every_part_by_singular_values_that_go_with_the_root_of_out_over_in(cfg, rule):
    lr, sizes = 0.1, []
    for width in (BASE, 4 * BASE):
        model = built(MuP(base_width=BASE), sized(cfg, width=width))
        role, before = roles(model), {n: p.detach().clone() for n, p in model.named_parameters()}
        optim = Muon(lr=lr, adamw_lr=lr, weight_decay=0.0, scale=rule, clip=None)
        optimizer = optim.build(model, Constant(warmup=0.0), 1)
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        optimizer.step()
        found = {}
        for name, p in model.named_parameters():
            if role[name].kind == "matrix":
                for i, part in enumerate(
                    (p.detach() - before[name]).split(role[name].splits or p.shape[-2], -2)
                ):
                    out, into = part.shape[-2:]
                    typical = part.norm().item() / math.sqrt(part.shape[:-2].numel() * min(out, into))
                    found[name, i] = typical / math.sqrt(out / into)
        sizes.append(found)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)  # Newton-Schulz brings them near to 1, no nearer


def test_hidden_states_shrink_on_their_way_to_the_head_as_the_width_grows():
    cfg = sized(DENSE["plain"], width=2 * BASE)
    wide = built(MuP(base_width=BASE), cfg)
    batch = batch_of(CLM)
    h = wide(batch.text).h
    wide.readout = 1.0
    assert torch.equal(h, 0.5 * wide(batch.text).h)


def test_steps_of_a_generation_are_read_out_alike():
    model = built(MuP(base_width=8), sized(DENSE["plain"])).double()
    text = batch_of(CLM, documents=1).text
    state = model.init_state(len(text.ids))
    with torch.no_grad():
        torch.testing.assert_close(model.step(text, state)[0], model(text).h, rtol=0, atol=1e-12)


# runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


def test_a_run_is_recorded_resumed_and_loaded_as_it_is_parametrised(home):
    changes = {
        "parametrization": "completep",
        "parametrization__base_width": 8,
        "parametrization__base_depth": 2,
        "eval__samples": 0,
        "optim": "muon",
    }
    with without_figures():
        record = train(tiny(home, name="whole", **changes))
        stopped(tiny(home, name="parts", **changes), 5)
        train(tiny(home, name="parts", **changes))
    assert record is not None
    assert record.parametrization == "completep, base width 8, base depth 2"
    assert weights(home / "runs" / "whole", 12) == weights(home / "runs" / "parts", 12)
    loaded = load_run(home / "runs" / "whole")
    assert loaded.model.readout == 0.5
    with pytest.raises(ConfigError, match=r"parametrization\.base_width"):
        train(tiny(home, name="whole", **(changes | {"parametrization__base_width": 16})))


def test_a_base_that_layers_cannot_have_is_refused_by_its_key(home):
    with pytest.raises(
        ConfigError, match=r"parametrization\.base_width=12: d_model=12 is no multiple of head_dim=8"
    ):
        tiny(home, parametrization="mup", parametrization__base_width=12)


def test_a_base_without_a_parametrisation_that_has_one_is_answered_with_those_that_are(home):
    with pytest.raises(ConfigError, match=r"unknown key parametrization\.base_width: .*parametrization=mup"):
        tiny(home, parametrization__base_width=16)


def test_the_base_of_a_decoder_has_its_cross_attention_too():
    cfg = dataclasses.replace(DENSE["plain"], cross=CrossAttention(head_dim=32))
    with pytest.raises(ValueError, match=r"parametrization\.base_width=16: model\.cross: "):
        scales_of(MuP(base_width=16), cfg, Denoising())
