"""Adding an objective or a mixer is one Python file, one YAML and one line of the test matrix (with its import)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runs import REPO, overrides, write_text

OBJECTIVE = '''
"""Toy: the token after the next."""
import numpy as np
from llmtrain.config import config
from llmtrain.objectives.base import seq_of
from llmtrain.objectives.causal import CausalBatch, CausalLM
from llmtrain.types import IGNORE, NO_DOC


@config
class SkipLM(CausalLM):
    skip: int = 1

    @property
    def overlap(self):
        return 1 + self.skip

    @property
    def score_name(self):
        return f"skip{self.skip}_nats_per_token"

    def raw_len(self, seq_len):
        return seq_len + 1 + self.skip

    def example(self, row, vocab, *, seq_len, rng):
        targets = np.where(row.doc[1 + self.skip :] == NO_DOC, IGNORE, row.ids[1 + self.skip :])
        text = seq_of(row.ids[:seq_len], row.doc[:seq_len], False)
        return CausalBatch(text, targets, rng.integers(2**62))
'''
OBJECTIVE_YAML = """# Toy: the token after the next.
_target_: llmtrain.objectives.toy.SkipLM
z_loss: 0.0 # weight of the squared log-partition
skip: 1 # tokens left out
"""
MIXER = '''
"""Toy: the mean of everything that is visible."""
import torch
from llmtrain.config import config
from llmtrain.nn.base import Flops, Mixer, MixerModule, dense_flops
from llmtrain.nn.roles import linear
from llmtrain.types import Seq, visible


@config
class Mean(Mixer):
    def build(self, d_model, visibility):
        return MeanModule(d_model)


class MeanModule(MixerModule):
    def __init__(self, d_model):
        super().__init__()
        self.out = linear(d_model, d_model, residual=True)

    def forward(self, x, seq):
        return self._mean(x, seq, x, seq)

    def init_state(self, rows):
        w = self.out.weight
        none = torch.empty(rows, 0, dtype=torch.long, device=w.device)
        return w.new_empty(rows, 0, w.shape[1]), Seq(none, none, none, none.bool())

    def step(self, x, seq, state):
        seen = Seq(*(torch.cat(pair, 1) for pair in zip(state[1], seq, strict=True)))
        state = torch.cat((state[0], x), 1), seen
        return self._mean(x, seq, *state), state

    def flops(self, extent):
        d = self.out.in_features
        scores = Flops(2 * d * extent.pairs(), 2 * d * extent.tokens**2)
        return dense_flops(extent.tokens, self.out).plus(Flops(scores.model, scores.counter // 3 * 2))

    def _mean(self, x, seq, source, source_seq):
        seen = visible(seq, source_seq).to(x.dtype)
        return self.out(seen @ source / seen.sum(-1, keepdim=True).clamp_min(1))
'''
MODEL_YAML = (REPO / "configs/model/dense.yaml").read_text()


def mixer_yaml() -> str:
    """dense.yaml with the toy in the place of attention."""
    before, _, rest = MODEL_YAML.partition("      _target_: llmtrain.nn.mixers.attention.Attention\n")
    after = rest[rest.index("    mlp:") :]
    return f"{before}      _target_: llmtrain.nn.mixers.toy.Mean\n{after}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the four files added, and two lines in the test matrix."""
    home = tmp_path_factory.mktemp("adding")
    for name in ("llmtrain", "configs", "tests"):
        shutil.copytree(REPO / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(REPO / name, home)
    for path, text in {
        "llmtrain/objectives/toy.py": OBJECTIVE,
        "configs/objective/toy.yaml": OBJECTIVE_YAML,
        "llmtrain/nn/mixers/toy.py": MIXER,
        "configs/model/toy.yaml": mixer_yaml(),
    }.items():
        assert not (home / path).exists()
        (home / path).write_text(text.lstrip())
    for path, before, line in (
        ("tests/matrix.py", "OBJECTIVES: dict[str, Objective] = {", '"toy": SkipLM(),'),
        ("tests/matrix.py", "\n\n", "from llmtrain.objectives.toy import SkipLM"),
        (
            "tests/tiny.py",
            "ARCHS: dict[str, ModelConfig] = {",
            '"toy": ModelConfig(n_layers=2, d_model=32, layers=(Layer(mixer=Mean(), mlp=SwiGLU()),)),',
        ),
        ("tests/tiny.py", "\n\n", "from llmtrain.nn.mixers.toy import Mean"),
    ):
        text = (home / path).read_text()
        at = text.index(before) + len(before)
        (home / path).write_text(f"{text[:at]}\n{line}\n{text[at:]}")
    return home


def run(checkout: Path, *words: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=checkout,
        env=env,
        text=True,
        capture_output=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_toy_objective_trains_a_toy_mixer_from_the_command(checkout: Path) -> None:
    write_text(checkout)
    words = [
        word
        for word in overrides(checkout, name="toy", steps=30, seq_len=64, eval__every=15)
        if not word.startswith("model.layers.0.mixer")
    ]
    assert "objective" in run(checkout, "train.py", "--help")
    run(checkout, "train.py", *words, "objective=toy", "model=toy")
    record = json.loads((checkout / "runs/toy/record.json").read_text())
    assert (record["objective"], record["architecture"], record["status"]) == ("toy", "toy", "finished")
    assert record["score"]["name"] == "skip1_nats_per_token"
    rows = [json.loads(line) for line in (checkout / "runs/toy/metrics.jsonl").read_text().splitlines()]
    scores = [
        row["validation/skip1_nats_per_token"] for row in rows if "validation/skip1_nats_per_token" in row
    ]
    assert scores[-1] < scores[0]


@pytest.mark.slow
def test_the_matrix_covers_them_by_their_lines(checkout: Path) -> None:
    said = run(
        checkout,
        "-m",
        "pytest",
        "tests/test_matrix.py",
        "tests/test_matrix_counts.py",
        "tests/test_configs.py",
        "-k",
        "clm-toy or toy-plain or toy-toy or toy.yaml",
        "-p",
        "no:cacheprovider",
    )
    assert " passed" in said and "failed" not in said
