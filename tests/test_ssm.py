"""The Mamba-2 mixer: it hears what is visible, steps as it runs, and costs what it says."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.accounting import flops
from llmtrain.nn.base import Extent
from llmtrain.nn.init import initialise
from llmtrain.nn.mixers.attention import Attention
from llmtrain.nn.mixers.cross import CrossAttention
from llmtrain.nn.mixers.ssm import SSM
from llmtrain.nn.mlps.swiglu import SwiGLU
from llmtrain.nn.model import Block, Layer, Model, ModelConfig, TokenHead, Trunk
from llmtrain.nn.roles import roles
from llmtrain.objectives.causal import CausalLM
from llmtrain.ops import backend
from llmtrain.types import Seq, Visibility, visible
from tests.tiny import VOCAB, batch_of, mixed, model_of, noise, stream

ROOT = Path(__file__).parents[1]
SSMS: dict[str, SSM] = {
    "plain": SSM(head_dim=8, d_state=5),
    "small_chunks": SSM(head_dim=16, d_state=4, chunk=3),
    "groups": SSM(head_dim=8, d_state=4, groups=2, chunk=4, conv=2),
    "wide": SSM(head_dim=32, d_state=6, expand=3, conv=6),
}
ssms = pytest.mark.parametrize("ssm", SSMS.values(), ids=SSMS.keys())
visibilities = pytest.mark.parametrize("visibility", Visibility)
kernels = pytest.mark.parametrize("kernel", ["reference", "chunked"])
CLM = CausalLM()


def config_of(ssm: SSM, **model) -> ModelConfig:
    return ModelConfig(
        **{"n_layers": 2, "d_model": 32, "layers": (Layer(mixer=ssm),), "cross": CrossAttention(head_dim=8)}
        | model
    )


def block_of(ssm: SSM, visibility: Visibility) -> Block:
    block = Block(config_of(ssm), 0, visibility, cross=False).double()
    for i, p in enumerate(block.parameters()):
        p.data = noise(*p.shape, seed=i) * (0.3 if p.ndim > 1 else 1.0)
    return block


# what it hears


@kernels
@visibilities
@ssms
def test_gradient_reaches_exactly_what_is_visible(ssm, visibility, kernel):
    seq, block = mixed(visibility), block_of(ssm, visibility)
    x = noise(*seq.doc.shape, 32, seed=7).requires_grad_()
    along = noise(32, seed=8)
    rows, tokens = seq.doc.shape
    truth = torch.zeros(rows, tokens, rows, tokens, dtype=torch.bool)
    for r, seen in enumerate(visible(seq, seq)):
        truth[r, :, r] = seen
    with backend.force(scan=kernel):
        out = block.mixer(x, seq)
        heard = [torch.autograd.grad(y @ along, x, retain_graph=True)[0] for y in out.flatten(0, 1)]
    reach = torch.stack([g.norm(dim=-1) for g in heard]).view_as(truth)
    assert torch.equal(reach > 1e-9 * reach.max(), truth)


@kernels
@visibilities
@ssms
@torch.no_grad()
def test_a_token_changes_exactly_the_outputs_that_may_see_it(ssm, visibility, kernel):
    """The others keep every bit, in float64 and in float32."""
    seq, block = mixed(visibility), block_of(ssm, visibility)
    seen = visible(seq, seq)
    for dtype in (torch.float64, torch.float32):
        mixer = block.mixer.to(dtype)
        x = noise(*seq.doc.shape, 32, seed=7, dtype=dtype)
        with backend.force(scan=kernel):
            before = mixer(x, seq)
            for j in range(x.shape[1]):
                other = x.clone()
                other[:, j] = noise(len(x), 32, seed=9, dtype=dtype)
                changed = (mixer(other, seq) != before).any(-1)
                assert not (changed & ~seen[:, :, j]).any()
                assert dtype is torch.float32 or torch.equal(changed, seen[:, :, j])


@ssms
@torch.no_grad()
def test_a_prefix_does_not_know_how_long_its_target_is(ssm):
    """The biases of the convolution would tell, were they not kept out of the reversed state."""
    mixer = block_of(ssm, Visibility.PREFIX).mixer
    x = noise(1, 20, 32, seed=7)

    def run(length: int) -> Tensor:
        seq = stream(((length,),), length)
        return mixer(x[:, :length], seq._replace(prefix=seq.pos < 6))[:, :6]

    whole = run(20)
    for length in (6, 7, 9, 15):
        torch.testing.assert_close(run(length), whole, rtol=0, atol=1e-13)
    causal = mixer(x, stream(((20,),), 20))[:, :6]
    assert (whole - causal).abs().max() > 1e-3  # so the prefix is heard at all


@visibilities
@ssms
@torch.no_grad()
def test_step_by_step_equals_forward(ssm, visibility):
    seq = stream(((6, 5), (1, 2, 6), (11,)), 12, visibility)
    inside = (seq.prefix[:, 1:] & (seq.pos[:, 1:] > 0)).any(0).tolist()
    finest = [i for i in range(1, 12) if not inside[i - 1]]
    mixer = block_of(ssm, visibility).mixer
    x = noise(*seq.doc.shape, 32, seed=7)
    whole = mixer(x, seq)
    for cuts in (finest, finest[1::3], []):
        state, out = mixer.init_state(len(x)), []
        for start, end in zip([0, *cuts], [*cuts, 12], strict=True):
            y, state = mixer.step(x[:, start:end], Seq(*(part[:, start:end] for part in seq)), state)
            out.append(y)
        torch.testing.assert_close(torch.cat(out, 1), whole, rtol=0, atol=1e-12)


# how it begins


def test_steps_rates_and_taps_begin_in_their_ranges():
    ssm = SSM(head_dim=8, dt_min=2e-3, dt_max=0.05)
    trunk = Trunk(config_of(ssm, d_model=512), Visibility.BIDIRECTIONAL)
    initialise(trunk, n_layers=2, seed=0)
    mixer = trunk.blocks[0].mixer
    assert (mixer.D == 1).all() and (mixer.norm.weight == 1).all()
    for branch in (mixer.past, mixer.prefix):
        dt, rate = torch.nn.functional.softplus(branch.dt_bias), branch.A_log.exp()
        assert 2e-3 < dt.min() < 2.5e-3 and 0.04 < dt.max() < 0.05 + 1e-6
        assert abs(dt.log().mean().item() - math.log(0.01)) < 0.25  # the middle of the logarithms
        assert 1 <= rate.min() < 1.7 and 15.3 < rate.max() <= 16
        assert not branch.conv_bias.any()
        assert 0.49 < branch.conv_weight.abs().max() <= 0.5
    assert not torch.equal(mixer.past.A_log, mixer.prefix.A_log)


@visibilities
@ssms
def test_roles_fuse_the_in_projection_and_spare_the_dynamics(ssm, visibility):
    mixer = ssm.build(32, visibility)
    found = roles(mixer)
    assert {name for name, role in found.items() if role.kind == "matrix"} == {"in_proj.weight", "out.weight"}
    assert [name for name, role in found.items() if role.residual] == ["out.weight"]
    assert sum(found["in_proj.weight"].splits) == len(mixer.in_proj.weight)
    assert (mixer.prefix is None) == (visibility is Visibility.CAUSAL)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SSM(d_state=0), "d_state must be at least 1"),
        (lambda: SSM(conv=1), "conv must be at least 2"),
        (lambda: SSM(dt_min=0.2), "0 < dt_min <= dt_max"),
        (lambda: SSM(head_dim=24).build(32, Visibility.CAUSAL), "d_model=32 times expand=2 is no multiple"),
        (lambda: SSM(head_dim=8, groups=3).build(32, Visibility.CAUSAL), "8 heads of 8, not a multiple"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# in a model


@ssms
@torch.no_grad()
def test_a_decoder_hears_its_source(ssm):
    head = TokenHead(32, VOCAB.size)
    model = Model(config_of(ssm), Visibility.CAUSAL, vocab_size=VOCAB.size, head=head, encoder=True)
    initialise(model, n_layers=2, seed=0)
    model = model.double()
    target, source = stream(((3, 4), (7,)), 8), stream(((5, 2), (6,)), 7, Visibility.BIDIRECTIONAL)
    whole = model(target, source).h
    memory, state, out = model.encode(source), model.init_state(2), []
    for i in range(8):
        h, state = model.step(Seq(*(part[:, i : i + 1] for part in target)), state, memory)
        out.append(h)
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=0, atol=1e-12)


@visibilities
@ssms
def test_half_precision_is_close_and_deterministic_bits_repeat(ssm, visibility):
    seq = mixed(visibility)
    trunk = Trunk(config_of(ssm), visibility)
    initialise(trunk, n_layers=2, seed=0)
    x = noise(*seq.doc.shape, 32, dtype=torch.float32)
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for half in (False, True, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                h = trunk(x, seq).h
            (h * noise(*h.shape, seed=3, dtype=torch.float32)).sum().backward()
            runs.append([h.detach(), *(p.grad for p in trunk.parameters())])
            trunk.zero_grad()
    finally:
        torch.use_deterministic_algorithms(False)
    full, once, again = runs
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    for ours, theirs in ((once[:1], full[:1]), (once[1:], full[1:])):  # values, and all gradients together
        a, b = (torch.cat([t.flatten() for t in ts]) for ts in (ours, theirs))
        assert (a - b).norm() < 0.02 * b.norm()


# what it costs


@pytest.mark.parametrize("seq_len", [1, 12, 16])
@pytest.mark.parametrize("rows", [1, 3])
@ssms
def test_flops_counter_is_what_torch_counts_of_a_row(ssm, rows, seq_len):
    cfg = config_of(ssm, layers=(Layer(mixer=ssm), Layer(mixer=Attention(head_dim=8), mlp=SwiGLU())))
    expected = flops(cfg, CLM, seq_len, vocab_size=VOCAB.size).counter
    model, batch = model_of(CLM, cfg), batch_of(CLM, seq_len=seq_len, rows=rows, documents=1)
    with backend.force(attention="reference"), FlopCounterMode(display=False) as counter:
        CLM.loss(model, batch).loss.backward()
    assert counter.get_total_flops() == rows * expected


@visibilities
@ssms
def test_flops_counter_counts_both_directions(ssm, visibility):
    seq = stream(((6, 5), (11,)), 11, visibility)
    mixer = block_of(ssm, visibility).mixer
    x = noise(2, 11, 32).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        mixer(x, seq).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * mixer.flops(Extent(11, visibility, 4)).counter


def test_flops_model_by_hand():
    ssm = SSM(head_dim=8, d_state=5)
    tokens, prefix, inner = 100, 40, 64
    one_way = 2 * 32 * (2 * inner + 2 * 5 + 8) + 2 * inner * 32  # z and x, B and C, dt; out
    both = one_way + 2 * 32 * 8  # a second dt
    scan = 2 * 4 * (inner + 10) + 6 * inner * 5  # taps; decay, input and output of each number of the state
    for visibility, expected in (
        (Visibility.CAUSAL, tokens * (one_way + scan)),
        (Visibility.PREFIX, tokens * (both + scan) + prefix * scan),
        (Visibility.BIDIRECTIONAL, tokens * (both + 2 * scan)),
    ):
        assert ssm.build(32, visibility).flops(Extent(tokens, visibility, prefix)).model == expected


def test_flops_model_does_not_depend_on_the_chunk_and_the_counter_does():
    found = [
        SSM(head_dim=8, chunk=chunk).build(32, Visibility.CAUSAL).flops(Extent(100, Visibility.CAUSAL))
        for chunk in (8, 64)
    ]
    assert found[0].model == found[1].model
    assert found[0].counter < found[1].counter


COMPILED = """
import torch
from tests.test_ssm import SSMS, block_of
from tests.tiny import mixed, noise
from llmtrain.types import Visibility

seq, block = mixed(Visibility.PREFIX), block_of(SSMS["groups"], Visibility.PREFIX)
x = noise(*seq.doc.shape, 32, seed=7).requires_grad_()
found = []
for f in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
    y = f(x, seq, None).h
    y.backward(noise(*y.shape, seed=3))
    found.append([y.detach(), *(p.grad for p in (x, *block.parameters()))])
    x.grad = None
    block.zero_grad()
for ours, theirs in zip(*found, strict=True):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * max(1, theirs.abs().max().item()))
"""


@pytest.mark.slow
def test_compiled_without_a_graph_break_equals_eager():
    """In a process of its own: the type checker that tests run under is not to be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, check=True)
