"""Labelled sets that a user names: read from any of their formats, and told apart from what cannot be read."""

import json
import lzma
from pathlib import Path

import pytest

from llmtrain.errors import ConfigError, DataError
from llmtrain.evaluation.feature_settings import Graded, Labelled
from llmtrain.evaluation.labelled import classification, rows, similarity

ROWS = [{"text": f"Text {i}, über …", "label": str(i % 3), "work": str(i // 5)} for i in range(200)]


def written(folder: Path, suffix: str) -> str:
    path = folder / f"set{suffix}"
    if ".csv" in suffix or ".tsv" in suffix:
        mark = "," if ".csv" in suffix else "\t"
        lines = [mark.join(ROWS[0])] + [mark.join(f'"{value}"' for value in row.values()) for row in ROWS]
        text = "\n".join(lines)
    else:
        text = "\n".join(json.dumps(row) for row in ROWS) + "\n"
    path.write_bytes(lzma.compress(text.encode()) if suffix.endswith(".xz") else text.encode())
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.xz", ".json", ".csv", ".tsv.xz"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert list(rows(written(tmp_path, suffix))) == ROWS


def test_a_data_set_of_the_library_is_read_by_its_name(tmp_path):
    written(tmp_path, ".jsonl")
    assert [row["text"] for row in rows(f"{tmp_path}@train")] == [row["text"] for row in ROWS]


def test_splits_that_are_not_named_are_dealt_by_group_and_share_none(tmp_path):
    task = classification(Labelled(name="a", train=written(tmp_path, ".jsonl"), group="work", drop=("2",)))
    groups = [{e.group for e in part} for part in (task.train, task.dev, task.test)]
    assert all(groups) and len(set.union(*groups)) == sum(map(len, groups)) == 40
    assert {e.label for e in task.train} == {"0", "1"}
    assert len(task.train) > len(task.test) > 0


def test_test_rows_that_stand_in_train_or_dev_are_left_out(tmp_path):
    path = written(tmp_path, ".jsonl")
    other = tmp_path / "test.jsonl"
    other.write_text("\n".join(json.dumps(row) for row in [*ROWS[:7], {"text": "new", "label": "1"}]))
    task = classification(Labelled(name="a", train=path, test=str(other)))
    assert [e.input.text for e in task.test] == ["new"]
    assert task.note == "7 test items left out that stand in train or dev too"


def test_pairs_that_share_a_sentence_with_dev_are_left_out(tmp_path):
    dev, test = tmp_path / "dev.jsonl", tmp_path / "test.jsonl"
    dev.write_text(json.dumps({"s1": "a", "s2": "b", "score": 1}))
    test.write_text("\n".join(json.dumps({"s1": x, "s2": y, "score": "2.5"}) for x, y in ("xb", "xy")))
    task = similarity(Graded(name="a", dev=str(dev), test=str(test)))
    assert [(p.first, p.second, p.score) for p in task.test] == [("x", "y", 2.5)]
    assert task.note.startswith("1 test item")


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        ('{"text": "a", "label": "b"}\n{"text"', DataError, ":2: not a line of JSON"),
        ('["a", "b"]', DataError, ":1: a line must be an object"),
        ('{"text": "a"}', ConfigError, ":1: no field 'label' here, but text"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, content, error, told):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(error, match=told):
        classification(Labelled(name="a", train=str(path)))


def test_a_name_that_is_neither_file_nor_data_set_is_refused():
    with pytest.raises(ConfigError, match="NAME@SPLIT"):
        list(rows("trec"))
    with pytest.raises(DataError, match="cannot be read"):
        list(rows("nowhere.jsonl"))


def test_a_field_of_a_table_may_be_longer_than_csv_allows_of_itself(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "a" * 200_000 + ",b\n")
    assert [len(row["text"]) for row in rows(str(path))] == [200_000]


@pytest.mark.parametrize("score", ["nan", "inf", "much"])
def test_a_grade_that_is_no_number_is_refused(tmp_path, score):
    path = tmp_path / "graded.csv"
    path.write_text(f"s1,s2,score\na,b,{score}\n")
    with pytest.raises(ConfigError, match=r"graded\.csv:1: score=.* is no number"):
        similarity(Graded(name="a", dev=str(path), test=str(path)))
