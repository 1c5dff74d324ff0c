"""The injector of faults strikes where it was told to, once in the life of a run, and takes no typo."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmtrain import cli, faults
from llmtrain.errors import ConfigError
from processes import forked
from runs import metrics, overrides, weights, write_text


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kill", "KIND@POINT=N"),
        ("kill@step", "KIND@POINT=N"),
        ("kill@step=7,", "KIND@POINT=N"),
        ("kill@step=-1", "KIND@POINT=N"),
        ("kil@step=7", "did you mean kill"),
        ("kill@stp=7", "did you mean step"),
        ("nan@step=9,rnk=1", "did you mean rank"),
        ("nan@step=9,rank=one", "rank=one must be a number"),
        ("slow@write=*,times=0", "at least 1"),
        ("nan@save=2", "no numbers at save"),
        ("kill@grad=2", "use step"),
        ("kill@step=7;enosp@save=2", "did you mean enospc"),
    ],
)
def test_a_typo_is_one_line_that_says_what_was_meant(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refusal:
        faults.arm(text)
    assert "\n" not in str(refusal.value)


def test_a_typo_ends_a_command_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(faults.VARIABLE, "kill@stp=7")
    assert cli.main(["experiment=clm_dense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fault_strikes_at_its_number_on_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    faults.arm("raise@step=3,rank=0; raise@step=4,rank=1")
    for step in (0, 1, 2, 3):
        faults.at("step", step)
    with pytest.raises(RuntimeError, match="raise@step=4"):
        faults.at("step", 4)


def test_points_without_a_number_are_counted_from_one() -> None:
    faults.arm("enospc@save=2")
    faults.at("save")
    faults.at("write")
    with pytest.raises(OSError, match="No space left"):
        faults.at("save")
    faults.at("save")


def test_a_fault_strikes_so_many_times_in_the_life_of_a_run_and_not_in_every_start(tmp_path: Path) -> None:
    struck = 0
    for _ in range(5):
        faults.arm("raise@step=3,times=2")
        faults.remember_in(tmp_path)
        try:
            faults.at("step", 3)
        except RuntimeError:
            struck += 1
    assert struck == 2
    faults.arm("raise@step=3,times=2")
    faults.remember_in(tmp_path / "another")
    with pytest.raises(RuntimeError):
        faults.at("step", 3)


def test_every_time_is_every_time(tmp_path: Path) -> None:
    faults.arm("slow@write=*,seconds=0.01")
    faults.remember_in(tmp_path)
    begun = time.perf_counter()
    for _ in range(5):
        faults.written("manifest.json")
    assert time.perf_counter() - begun >= 0.05
    assert not (tmp_path / faults.MARKER).exists()


@pytest.mark.parametrize(("kind", "by"), [("nan", float("nan")), ("inf", float("inf")), ("spike", 100.0)])
def test_numbers_are_spoilt_in_one_element_of_a_copy(kind: str, by: float) -> None:
    faults.arm(f"{kind}@grad=2")
    whole = torch.ones(2, 3)
    assert faults.poisoned(whole, "grad", 1) is whole
    spoilt = faults.poisoned(whole, "grad", 2)
    torch.testing.assert_close(spoilt[0, 0], torch.tensor(by), equal_nan=True)
    assert spoilt.ne(1).sum() == 1 and whole.eq(1).all()


def test_out_of_memory_is_what_torch_raises() -> None:
    faults.arm("oom@step=0")
    with pytest.raises(torch.OutOfMemoryError):
        faults.at("step", 0)


@pytest.mark.slow
def test_a_run_breaks_where_it_is_told_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path)
    words = overrides(
        tmp_path, name="a", seq_len=64, steps=6, checkpoint__every=2, eval__samples=0, eval__rows=4
    )
    monkeypatch.setenv(faults.VARIABLE, "kill@step=1;nan@grad=3;enospc@save=2;raise@end=1")
    ends = []
    for _ in range(5):
        with forked(lambda: cli.main(words)) as child:
            code, _, err = child.ended()
        ends.append((code, [line for line in err.splitlines() if "rror" in line][-1:]))
    codes, said = zip(*ends, strict=True)
    assert codes == (-9, 4, 5, 1, 0)
    assert "step 4: loss" in said[1][0] and "nan" in said[1][0]
    assert "No space left" in said[2][0]
    assert said[3] == ["RuntimeError: LLMTRAIN_FAULT: raise@end=1"]
    monkeypatch.delenv(faults.VARIABLE)
    assert cli.main([*words, "name=b"]) == 0
    assert metrics(tmp_path / "runs" / "a") == metrics(tmp_path / "runs" / "b")
    assert weights(tmp_path / "runs" / "a", 6) == weights(tmp_path / "runs" / "b", 6)
