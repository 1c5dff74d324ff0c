"""On a GPU: its kernels are the definitions, every pair trains as on a CPU, and a run in pieces is the whole run."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.compose import run_from
from llmtrain.dry_run.command import dry_run
from llmtrain.ops import backend
from llmtrain.ops.attention import attend
from llmtrain.ops.moe import Slots, experts
from llmtrain.pretrain import train
from llmtrain.types import NO_DOC, Seq, Visibility
from runs import PAIRS, REPO, metrics, overrides, pair, stopped, tiny, weights, write_text
from tests.tiny import noise, stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
ROWS = ((100, 28), (128,), (60,), (1, 1, 40, 70))  # the third ends in padding, and so does the last
FEW = ["clm_dense", "mlm_moe", "denoising_ssm", "contrastive_hybrid"]


def near(ours: Tensor, theirs: Tensor, share: float) -> bool:
    return float((ours - theirs).float().norm()) <= share * float(theirs.float().norm())


def value_and_gradients(name: str, qkv: tuple[Tensor, ...], q: Seq, k: Seq, **options: Any) -> list[Tensor]:
    given = [x.detach().requires_grad_() for x in qkv]
    with backend.force(attention=name):
        y = attend(*given, q, k, **options)
    pull = noise(*y.shape, seed=9, dtype=torch.float32).to(y)
    return [y, *torch.autograd.grad(y, given, pull)]


def heads(q: Seq, k: Seq, *, n_kv: int = 2, d: int = 64) -> tuple[Tensor, ...]:
    rows = len(q.doc)
    shapes = (rows, 4, q.doc.shape[1], d), (rows, n_kv, k.doc.shape[1], d), (rows, n_kv, k.doc.shape[1], d)
    return tuple(noise(*s, seed=i, dtype=torch.float32).bfloat16().cuda() for i, s in enumerate(shapes))


def on_gpu(seq: Seq) -> Seq:
    return Seq(*(x.cuda() for x in seq))


@pytest.mark.parametrize("kernel", ["flash", "flex", "masked"])
@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("n_kv", [1, 2, 4])
@pytest.mark.parametrize("visibility", Visibility)
def test_attention_is_the_definition(visibility, n_kv, window, kernel):
    seq = on_gpu(stream(ROWS, 128, visibility))
    qkv = heads(seq, seq, n_kv=n_kv)
    ours, theirs = (
        value_and_gradients(name, qkv, seq, seq, visibility=visibility, window=window)
        for name in (kernel, "reference")
    )
    for a, b in zip(ours, theirs, strict=True):  # both round to bfloat16, at other places
        assert near(a, b, 0.02)
    assert not ours[0].transpose(1, 2)[seq.doc == NO_DOC].any()


@pytest.mark.parametrize("kernel", ["flash", "flex", "masked"])
@pytest.mark.parametrize("visibility", [Visibility.CAUSAL, Visibility.PREFIX])
@pytest.mark.parametrize("n_new", [1, 5])
def test_the_next_tokens_attend_to_those_before_them(visibility, n_new, kernel):
    seq = on_gpu(stream(((30, 50, 20), (40, 60), (100,)), 100, visibility))
    new = Seq(*(x[:, -n_new:] for x in seq))
    qkv = heads(new, seq)
    ours, theirs = (
        value_and_gradients(name, qkv, new, seq, visibility=visibility) for name in (kernel, "reference")
    )
    assert all(near(a, b, 0.02) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kernel", ["flash", "flex", "masked"])
def test_cross_attention_reaches_the_whole_source_of_a_document(kernel):
    target, source = (
        on_gpu(stream(((40, 10, 30), (20, 50), ()), 80)),
        on_gpu(stream(((20, 60), (30, 30, 40), (50,)), 100)),
    )
    source = source._replace(prefix=torch.ones_like(source.prefix))
    qkv = heads(target, source)
    ours, theirs = (
        value_and_gradients(name, qkv, target, source, visibility=Visibility.BIDIRECTIONAL)
        for name in (kernel, "reference")
    )
    assert all(near(a, b, 0.02) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_products_are_the_definition(dtype):
    slots = Slots(
        torch.arange(64).repeat_interleave(2),
        torch.rand(64, 4, generator=torch.Generator().manual_seed(0)).topk(2).indices.flatten(),
        noise(128, seed=5, dtype=torch.float32),
    )
    slots = Slots(*(t.cuda() for t in slots))
    inputs = [
        noise(*s, seed=i, dtype=torch.float32).to("cuda", dtype).requires_grad_()
        for i, s in enumerate(((64, 32), (4, 96, 32), (4, 32, 48)))
    ]
    found = []
    for kernel in ("grouped", "reference"):
        with backend.force(experts=kernel):
            y = experts(*inputs, slots)
        found.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    share = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert all(near(a, b, share) for a, b in zip(*found, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("gpu")
    write_text(home)
    return home


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in metrics(run) if "loss" in row]


@pytest.mark.parametrize("experiment", PAIRS)
def test_a_pair_trains_as_on_a_cpu(folder, experiment):
    """In float32 to its last digits, and in bfloat16 to those it has."""
    found = {}
    for accelerator, precision in (("cpu", "fp32"), ("gpu", "fp32"), ("gpu", "bf16")):
        name = f"{experiment}-{accelerator}-{precision}"
        options = {"name": name, "trainer__accelerator": accelerator, "trainer__precision": precision}
        record = train(tiny(folder, **(pair(experiment) | options)))
        assert record is not None and math.isfinite(record.score.value)
        found[accelerator, precision] = losses(folder / "runs" / name)
    assert found["gpu", "fp32"] == pytest.approx(found["cpu", "fp32"], rel=2e-3)
    assert found["gpu", "bf16"] == pytest.approx(found["cpu", "fp32"], rel=3e-2)


@pytest.mark.parametrize("experiment", FEW)
def test_a_run_in_pieces_is_the_whole_run_bit_for_bit(folder, experiment):
    options = pair(experiment) | {"trainer__accelerator": "gpu", "trainer__precision": "bf16"}
    train(tiny(folder, **(options | {"name": f"whole-{experiment}"})))
    run = tiny(folder, **(options | {"name": f"pieces-{experiment}"}))
    assert stopped(run, 3) == 143
    train(run)
    whole = folder / "runs" / f"whole-{experiment}"
    assert metrics(run.folder) == metrics(whole)
    assert weights(run.folder, 6) == weights(whole, 6)


@pytest.mark.parametrize("experiment", FEW)
def test_a_compiled_run_learns_as_the_plain_one(folder, experiment):
    """As users start it: under the types that tests check at run time, a compiler sees another program."""
    options = pair(experiment) | {"trainer__accelerator": "gpu", "trainer__precision": "bf16", "steps": 4}
    found = []
    for compiled in ("false", "true"):
        name = f"compile-{compiled}-{experiment}"
        words = overrides(folder, **(options | {"name": name, "trainer__compile": compiled}))
        done = subprocess.run([sys.executable, REPO / "train.py", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr.lower()
        found.append(losses(folder / "runs" / name))
    assert found[1] == pytest.approx(found[0], rel=3e-2)


@pytest.mark.parametrize("experiment", ["clm_dense", "mlm_moe", "clm_ssm"])
def test_the_peak_that_a_dry_run_predicts_is_the_gpus(folder, experiment):
    larger = {
        "model__d_model": 512, "model__n_layers": 8, "seq_len": 1024, "batch_rows": 8, "steps": 3, "eval__samples": 0,
        "eval__rows": 2, "name": f"peak-{experiment}", "optim": "adamw", "trainer__precision": "bf16",
        "model__layers__0__mixer__head_dim": 64,
    }  # fmt: skip
    words = overrides(folder, **(pair(experiment) | larger))
    _, predicted = dry_run(run_from(words)).peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(run_from([*words, "trainer.accelerator=gpu"]))
    assert predicted.total == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.1)
