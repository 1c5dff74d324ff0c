"""Every pair as a run: stopped and continued it is the run that was not, bit for bit."""

from pathlib import Path

import pytest

from llmtrain.pretrain import train
from runs import PAIRS, metrics, pair, stopped, tiny, weights, write_text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_text(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PAIRS)
def test_a_pair_in_pieces_is_the_whole_pair_bit_for_bit(home: Path, experiment: str) -> None:
    whole, pieces = (
        tiny(home, name=f"{experiment}-{name}", **pair(experiment)) for name in ("whole", "pieces")
    )
    record = train(whole)
    assert record is not None and record.series == experiment
    assert stopped(pieces, 3) == 143
    train(pieces)
    assert metrics(pieces.folder) == metrics(whole.folder)
    assert weights(pieces.folder, 6) == weights(whole.folder, 6)
    if experiment.endswith(("moe", "hybrid")):
        assert all("load_max_over_mean" in row for row in metrics(whole.folder) if "loss" in row)
