"""The benchmark's public models: each is built at a run's shape and takes a step, so that a ratio is of real work."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from llmtrain.data.prepare import prepare
from llmtrain.errors import ConfigError, StorageError
from llmtrain.rivals import Elsewhere, rivals
from llmtrain.setup import Setup, set_up
from runs import pair, tiny, write_text

RIVALS = {
    "clm_dense": {"Llama"},
    "clm_moe": {"Mixtral (eager)", "Mixtral (grouped_mm)"},
    "clm_ssm": {"Mamba2"},
    "mlm_dense": {"EuroBert"},
    "denoising_dense": {"T5Gemma"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    write_text(folder)
    return folder


def ready(home: Path, experiment: str) -> Setup:
    run = tiny(home, **pair(experiment))
    return set_up(run, prepare(run.data, run.tokenizer))


@pytest.mark.parametrize("experiment", RIVALS)
def test_the_public_models_of_a_run_take_a_step_on_as_many_tokens(home: Path, experiment: str) -> None:
    setup = ready(home, experiment)
    found = rivals(setup, torch.device("cpu"))
    assert set(found) == RIVALS[experiment]
    for rival in found.values():
        before = [p.detach().clone() for p in rival.model.parameters()]
        assert rival.step() > 0
        assert any(not torch.equal(a, b) for a, b in zip(before, rival.model.parameters(), strict=True))
        *_, trunk = setup.run.objective.passes(setup.run.seq_len)
        assert rival.inputs["labels"].shape == (setup.run.batch_rows, trunk.tokens)


def test_a_pair_that_no_public_model_trains_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="no public model"):
        Elsewhere(tiny(home, **pair("mlm_hybrid")))


def test_they_step_in_a_process_of_their_own_which_may_be_killed(home: Path) -> None:
    others = Elsewhere(tiny(home, **pair("clm_dense")))
    try:
        for _ in range(2):
            others.step()
        assert list(others.seconds) == ["Llama"]
        assert len(others.seconds["Llama"]) == 2 and min(others.seconds["Llama"]) > 0
        (child,) = multiprocessing.active_children()
        child.kill()
        with pytest.raises(StorageError, match="killed, as it is where memory is short"):
            others.step()
    finally:
        others.close()
