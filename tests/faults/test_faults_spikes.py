"""A loss far above those before it is a spike, wherever the run was stopped; a clean run has none."""

from collections import deque
from pathlib import Path

import pytest

from llmtrain.optim.guard import robust_score
from poison import anomalies, done, poisoned
from runs import metrics, stopped, weights, write_text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


SPIKES = {"guard__threshold": 10, "guard__window": 8, "steps": 14}


@pytest.mark.fault("F18")
@pytest.mark.parametrize("action", ["log", "skip", "rollback"])
def test_a_loss_far_above_those_before_it_is_a_spike(home: Path, action: str) -> None:
    run = poisoned(home, (46,), "50", name=f"spike-{action}", guard__on_spike=action, **SPIKES)
    record = done(run)
    (row,) = anomalies(run)
    assert row == row | {"step": 12, "kind": "spike", "action": action, "rows": [[44, 48]], "module": None}
    assert row["score"] > 100
    updated = [row["updated"] for row in metrics(run.folder) if "loss" in row]
    assert updated == [action != "skip" or step != 12 for step in range(1, 15)]
    assert (record.skipped_steps, record.rollbacks) == (action == "skip", action == "rollback")


@pytest.mark.fault("F12", "F18")
def test_a_run_that_is_continued_inside_the_window_meets_the_same_spikes(home: Path) -> None:
    whole = poisoned(home, (38, 46), "50", name="spikes", guard__on_spike="skip", **SPIKES)
    done(whole)
    assert [row["step"] for row in anomalies(whole)] == [10, 12]
    run = poisoned(home, (38, 46), "50", name="spikes-stopped", guard__on_spike="skip", **SPIKES)
    for step in (4, 11):
        stopped(run, step)
    done(run)
    assert anomalies(run) == anomalies(whole)
    assert metrics(run.folder) == metrics(whole.folder)
    assert weights(run.folder, 14) == weights(whole.folder, 14)


@pytest.mark.fault("F18")
def test_a_clean_run_has_no_spikes(home: Path) -> None:
    """At the threshold that the manual calls careful; the highest score of all its steps is not half of it."""
    run = poisoned(home, (), name="calm", steps=200, seq_len=32, guard__threshold=10, guard__window=32)
    assert done(run).skipped_steps == 0
    assert anomalies(run) == []
    window: deque[float] = deque(maxlen=32)
    scores = []
    for loss in [row["loss"] for row in metrics(run.folder) if "loss" in row]:
        scores += [robust_score(loss, window)] if len(window) == 32 else []
        window.append(loss)
    assert len(scores) == 168 and max(scores) < 5
