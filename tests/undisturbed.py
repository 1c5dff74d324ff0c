"""A run that nothing disturbed, as ``whole``, and whether another one is the same."""

from pathlib import Path
from typing import Any

from llmtrain.record import RunRecord
from runs import metrics, weights

SMALL: dict[str, Any] = {"seq_len": 64, "steps": 4, "eval__samples": 0, "eval__rows": 8}


def assert_whole(home: Path, name: str) -> None:
    assert metrics(home / "runs" / name) == metrics(home / "runs" / "whole")
    assert weights(home / "runs" / name, 4) == weights(home / "runs" / "whole", 4)
    assert RunRecord.read(home / "runs" / name / "record.json").status == "finished"
