"""scripts/show.py prints what the objective makes of the first rows of a run, whatever its examples are made of."""

import re
import sys
from typing import NamedTuple

import numpy as np
import pytest

from llmtrain.data.prepare import prepare
from llmtrain.setup import set_up
from llmtrain.types import IGNORE, Seq
from scripts import show
from tests.runs import overrides, tiny, write_text


def printed(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["show.py", *words])
    code = show.main()
    said = capsys.readouterr()
    return code, said.out + said.err


def test_every_position_of_the_first_rows_is_shown_with_what_comes_next(tmp_path, capsys, monkeypatch):
    write_text(tmp_path)
    changes = {"seq_len": 64, "batch_rows": 2}
    code, text = printed(capsys, monkeypatch, *overrides(tmp_path, **changes), "rows=3")
    assert code == 0
    blocks = text.split("\nrow ")[1:]
    code, some = printed(capsys, monkeypatch, *overrides(tmp_path, **changes), "rows=1-2")
    assert (code, re.split(r"(?m)^row ", some)[1:]) == (
        0,
        [f"{block}\n" for block in blocks[1:-1]] + blocks[-1:],
    )
    assert len(blocks) == 3
    run = tiny(tmp_path, **changes)
    prepared = prepare(run.data, run.tokenizer)
    examples = set_up(run, prepared).examples()
    for k, block in enumerate(blocks):
        batch = examples[k]
        after_heading = block.splitlines()[1:]
        lines = [line.split(maxsplit=4) for line in after_heading if line.strip()[:1].isdigit()]
        assert [[int(x) for x in line[:4]] for line in lines] == [
            [i, *numbers] for i, numbers in enumerate(np.stack(batch.text[:3], 1).tolist())
        ]
        for line, i, target in zip(lines, batch.text.ids.tolist(), batch.targets.tolist(), strict=True):
            pieces = [repr(prepared.tokenizer.decode([j], show_reserved=True)) for j in (i, target)]
            assert line[4].split() == " ".join(pieces).split()


def test_rows_must_be_a_number_and_the_rest_is_checked_as_for_a_run(capsys, monkeypatch):
    code, text = printed(capsys, monkeypatch, "rows=few")
    assert code == 2
    assert text == "error: rows=few must be a whole number, how many rows to show, or two, as in rows=24-27\n"
    code, text = printed(capsys, monkeypatch, "rows=1", "seq_lne=8")
    assert code == 2 and "seq_len" in text


class Pair(NamedTuple):
    source: Seq
    target: Seq
    targets: np.ndarray
    weight: np.ndarray


class Nested(NamedTuple):
    views: tuple[Seq, Seq]
    pair: Pair
    where: np.ndarray


def test_an_example_of_any_shape_is_taken_apart():
    def stream(n: int) -> Seq:
        return Seq(np.arange(n), np.zeros(n, int), np.arange(n), np.arange(n) < 2)

    targets = np.array([7, IGNORE, 9, 8])
    pair = Pair(stream(5), stream(4), targets, np.array(0.5))
    found = list(
        show.rendered(
            Nested((stream(2), stream(2)), pair, np.array([3, 1])), lambda i: "" if i == IGNORE else f"<{i}>"
        )
    )
    tables = [x for x in found if not isinstance(x, str)]
    assert [t.title for t in tables] == ["views.0", "views.1", "pair.source", "pair.target"]
    assert [t.row_count for t in tables] == [2, 2, 5, 4]
    assert [str(cell) for cell in tables[3].columns[-1].cells] == ["<7>", "", "<9>", "<8>"]
    assert [str(cell) for cell in tables[3].columns[4].cells] == ["yes", "yes", "", ""]
    assert [x for x in found if isinstance(x, str)] == ["pair.weight: 0.5", "where: 3 1"]
    assert [t.title for t in show.rendered(stream(3), str)] == [""]
