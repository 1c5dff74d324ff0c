"""The campaign of faults: its kills are kills, its comparison sees what differs, its table counts what did not hold."""

import json
import re
from pathlib import Path

import pytest

from llmtrain.campaign.grid import STEPS, words, write_text
from llmtrain.campaign.promises import PROMISES
from llmtrain.campaign.report import BEGIN, END, as_json, as_markdown, put_into, rows_of
from llmtrain.campaign.series import AT_RANDOM, IN_WRITES, Series, differences, series
from llmtrain.campaign.series import rows_of as rows_in
from runs import REPO


@pytest.mark.slow
@pytest.mark.fault("F1", "F2")
def test_kills_of_a_run_lose_nothing_and_a_finished_series_is_not_run_again(tmp_path: Path) -> None:
    write_text(tmp_path)
    found = series(tmp_path, "mlm_moe", kills=4, in_writes=2, fresh=0, seed=1)
    assert found.kills == {IN_WRITES: 2, AT_RANDOM: 2} and found.ends >= 1
    assert (found.failed, found.differs, found.torn) == ([], [], 0)
    assert series(tmp_path, "mlm_moe", kills=4, in_writes=2, fresh=0, seed=1) == found
    metrics = tmp_path / "runs" / "mlm_moe-killed" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[0]["loss"] += 1e-12
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = tmp_path / "mlm_moe-killed.rows"
    notes.write_text(notes.read_text() + "start\n47\n47\n")
    assert [what.partition(":")[0] for what in differences(tmp_path, "mlm_moe")] == ["losses", "rows"]


def test_of_each_start_the_rows_before_where_the_next_began_count(tmp_path: Path) -> None:
    (tmp_path / "a.rows").write_text("start\nstart\n0\n1\n2\n3\nstart\n2\n3\n4\n")
    assert rows_in(tmp_path, "a")[:5] == ["0", "1", "2", "3", "4"]
    (tmp_path / "a.rows").write_text("start\n0\n1\n2\nstart\n4\n5\n")
    assert rows_in(tmp_path, "a")[:5] == ["0", "1", "2", "4", "5"]


XML = """<testsuites><testsuite>
<testcase classname="a" name="holds"><properties><property name="fault" value="F6 F7"/></properties></testcase>
<testcase classname="a" name="fails"><properties><property name="fault" value="F6"/></properties><failure/></testcase>
<testcase classname="a" name="skips"><properties><property name="fault" value="F37"/></properties><skipped/></testcase>
<testcase classname="a" name="other"/>
</testsuite></testsuites>"""


def test_the_table_counts_what_held_what_did_not_and_what_nothing_tries(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(XML)
    good = Series("clm_dense", kills={IN_WRITES: 3, AT_RANDOM: 2})
    bad = Series("mlm_ssm", kills={IN_WRITES: 1, AT_RANDOM: 1}, differs=["losses: a and b"])
    rows = {row.fault: row for row in rows_of(tmp_path / "tests.xml", [good, bad])}
    assert list(rows) == list(PROMISES) == [f"F{n}" for n in range(1, 54)]
    assert (rows["F1"].tries, rows["F1"].survived) == (3, 2) and (rows["F2"].tries, rows["F2"].survived) == (
        4,
        3,
    )
    assert (rows["F6"].tries, rows["F6"].survived, rows["F6"].failures) == (2, 1, ["a::fails"])
    report = as_json(list(rows.values()), [good, bad])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nwhat was there\n{END}\nafter\n")
    put_into(page, as_markdown(report))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "what was there" not in text
    assert "7 kills in 2 pairs" in text and "- F6: a::fails" in text
    assert re.search(r"^\| F37 \|.*\| 0 \(1 skipped\) \| 0 \| 0 \|$", text, re.MULTILINE)
    assert re.search(r"^\| F3 \|.*\| none \| 0 \| 0 \|$", text, re.MULTILINE)


def test_the_page_has_a_place_for_the_table() -> None:
    page = (REPO / "docs" / "reliability.md").read_text()
    assert page.index(BEGIN) < page.index(END)


def test_the_small_runs_are_of_the_length_that_is_compared(tmp_path: Path) -> None:
    assert f"steps={STEPS}" in words(tmp_path, "clm_dense", "a")
