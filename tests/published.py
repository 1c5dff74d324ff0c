"""Published scaling data, which are no part of the project: tests of them are skipped where they are absent."""

from pathlib import Path

import pytest

from llmtrain.scaling import Columns, Points, read

FOLDER = Path(__file__).parents[2] / "shared" / "scaling"

needs_published = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the published data are not in ../shared/scaling"
)


def chinchilla() -> Points:
    """Runs of Hoffmann et al. 2022 as Besiroglu et al. 2024 read them off its figure."""
    columns = Columns(n="Model Size", c="Training FLOP", loss="loss")
    return read(FOLDER / "chinchilla_epoch.csv", columns)[0]


def gadre(dataset: str) -> Points:
    columns = Columns(n="N", d="D", c="flops", loss="loss_c4_val", where=(f"dataset_name={dataset}",))
    return read(FOLDER / "gadre_models.csv", columns)[0]
