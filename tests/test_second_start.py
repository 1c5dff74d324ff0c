"""What a second start may do: of a finished run nothing, of an unfinished one only what is the same run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain.errors import ConfigError, DataError
from llmtrain.pretrain import train
from llmtrain.record import RunRecord
from runs import write_text
from whole import finished, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def done(home: Path) -> RunRecord:
    return finished(home)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unfinished(home: Path, name: str) -> Path:
    """A copy of the finished run that lacks its record, as if the machine had died before the last moment."""
    copy = home / "runs" / name
    shutil.copytree(home / "runs" / "done", copy)
    (copy / "record.json").unlink()
    return copy


def test_a_second_start_of_a_finished_run_trains_nothing(
    home: Path, done: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(home / "runs" / "done")
    assert train(tiny(home, name="done", eval__every=5)) == done
    assert contents(home / "runs" / "done") == before
    assert capsys.readouterr().out == ""


OTHER = {  # what is changed, and how it is shown
    "rate": ({"optim__lr": 0.5}, "optim.lr: 0.003 there, 0.5 now"),
    "seed": ({"seed": 7}, "seed: 0 there, 7 now"),
    "row": ({"seq_len": 64}, "seq_len: 512 there, 64 now"),
    "model": ({"model__norm": "sandwich"}, 'model.norm: "pre" there, "sandwich" now'),
    "layer": ({"model__layers__0__mixer__window": 8}, "mixer.window: null there, 8 now"),
    "class": ({"schedule": "wsd"}, "llmtrain.optim.schedules.WSD"),
}
LENGTH = {
    "shorter": ({"steps": 4}, "steps: 12 there, 4 now"),
    "in tokens": ({"steps": "null", "tokens": 1e4}, "tokens: null there, 10000.0 now"),
}


@pytest.mark.parametrize("what", [*OTHER, *LENGTH])
def test_another_config_in_the_folder_of_a_finished_run_is_refused_and_changes_nothing(
    home: Path, done: RunRecord, what: str
) -> None:
    refused_unchanged(home, "done", *(OTHER | LENGTH)[what])


@pytest.mark.parametrize("what", OTHER)
def test_another_config_in_the_folder_of_an_unfinished_run_is_refused_and_changes_nothing(
    home: Path, done: RunRecord, what: str
) -> None:
    unfinished(home, f"unfinished-{what}")
    refused_unchanged(home, f"unfinished-{what}", *OTHER[what])


def refused_unchanged(home: Path, name: str, changes: dict[str, Any], shown: str) -> None:
    before = contents(home / "runs" / name)
    with pytest.raises(ConfigError, match=r"holds .* with another config") as error:
        train(tiny(home, name=name, **({"eval__every": 5} | changes)))
    assert shown in str(error.value) and "name=" in str(error.value) and "\n" not in str(error.value)
    assert contents(home / "runs" / name) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": "never"}, "already holds a run and resume=never"),
        ({"steps": 4}, "has done 12 steps, more than the 4"),
    ],
)
def test_a_start_that_cannot_go_on_is_refused(
    home: Path, done: RunRecord, changes: dict[str, Any], message: str
) -> None:
    name = f"refused-{next(iter(changes))}"
    unfinished(home, name)
    with pytest.raises(ConfigError, match=message):
        train(tiny(home, name=name, **changes))


@pytest.mark.fault("F25")
def test_a_run_is_not_continued_on_a_corpus_that_has_changed(home: Path, done: RunRecord) -> None:
    unfinished(home, "changed")
    text = home / "text.txt"
    whole = text.read_text(encoding="utf-8")
    try:
        text.write_text(whole + "one more line\n", encoding="utf-8")
        with pytest.raises(DataError, match="made with another corpus"):
            train(tiny(home, name="changed"))
    finally:
        text.write_text(whole, encoding="utf-8")
