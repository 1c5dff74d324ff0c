"""What may be fitted together, from tables and from records; mistakes are one line with the way out."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmtrain.compare.about import require_alike
from llmtrain.errors import ConfigError, DataError
from llmtrain.scaling import Columns, read
from llmtrain.scaling.alike import SHARED
from records import record, write


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "model,params,flops,loss\na,1e6,6e14,3.5\nb,2e6,2.4e15,3.1\nb,4e6,4.8e15,3.0\n"
COLUMNS = {"n": "params", "c": "flops", "loss": "loss"}


def test_columns_are_read_by_the_names_given(tmp_path: Path) -> None:
    [points] = read(table(tmp_path, GOOD), Columns(**COLUMNS, run="model"))
    assert points.x["d"] == pytest.approx([1e8, 2e8, 2e8])  # C/6N
    assert points.convention.name == "6ND"
    assert points.n_units == 2
    assert [str(name) for name in points.run] == ["a", "b", "b"]


def test_of_n_d_and_c_the_third_follows(tmp_path: Path) -> None:
    text = "n,d,loss\n1e6,1e8,3.5\n2e6,1e8,3.1\n"
    [points] = read(table(tmp_path, text), Columns(n="n", d="d", loss="loss"))
    assert points.x["c"] == pytest.approx([6e14, 1.2e15])


def test_a_column_may_be_derived(tmp_path: Path) -> None:
    text = "c,acc@5,std\n1,.25,2\n2,.5,4\n"
    [points] = read(table(tmp_path, text), Columns(c="c", loss="1-acc@5", weight="1/std^2"))
    assert points.loss == pytest.approx([0.75, 0.5])
    assert points.weight == pytest.approx([0.25, 0.0625])


@pytest.mark.parametrize(
    ("where", "left"),
    [("model=b", 2), ("model!=b", 1), ("flops<1e15", 1), ("flops>=2.4e15", 2), ("loss <= 3.1", 2)],
)
def test_conditions_choose_rows(tmp_path: Path, where: str, left: int) -> None:
    [points] = read(table(tmp_path, GOOD), Columns(**COLUMNS, where=(where,)))
    assert len(points) == left


def test_series_are_apart(tmp_path: Path) -> None:
    found = read(table(tmp_path, GOOD), Columns(**COLUMNS, series="model"))
    assert [(p.about.series, len(p)) for p in found] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("columns", "said", "code"),
    [
        ({"n": "parms"}, "has no column 'parms': did you mean params?", 2),
        ({"loss": None}, "name the column of the loss with --loss", 2),
        ({"where": ("modl=b",)}, "has no column 'modl': did you mean model?", 2),
        ({"where": ("model",)}, "write NAME=VALUE", 2),
        ({"where": ("model=c",)}, "no row is left of model=c", 3),
        ({"n": "model"}, "line 2: model is 'a', no finite number", 3),
    ],
)
def test_a_wrong_column_is_one_clear_line(tmp_path: Path, columns: dict, said: str, code: int) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        read(table(tmp_path, GOOD), Columns(**(COLUMNS | columns)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("nan", "no finite number"),
        ("", "no finite number"),
        ("-1", "above 0"),
        ("0", "above 0"),
        ("inf", "no finite"),
    ],
)
def test_a_bad_cell_names_its_line_and_column(tmp_path: Path, cell: str, said: str) -> None:
    with pytest.raises(DataError, match=f"line 3: loss is .*{said}"):
        read(table(tmp_path, f"params,flops,loss\n1e6,6e14,3.5\n2e6,1e15,{cell}\n"), Columns(**COLUMNS))


def test_files_that_are_no_tables_say_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(DataError, match="needs a line of column names"):
        read(empty, Columns(**COLUMNS))
    with pytest.raises(ConfigError, match="no such file or folder"):
        read(tmp_path / "absent.csv", Columns(**COLUMNS))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read(binary, Columns(**COLUMNS))


def test_runs_count_parameters_without_the_input_table_and_the_head_once(tmp_path: Path) -> None:
    tied = {"total": 100, "embedding": 40, "head": 0, "active": 100, "non_embedding": 60}
    untied = {"total": 140, "embedding": 40, "head": 40, "active": 140, "non_embedding": 100}
    experts = {"total": 500, "embedding": 40, "head": 40, "active": 140, "non_embedding": 460}
    for name, n in (("tied", tied), ("untied", untied), ("experts", experts)):
        write(tmp_path, record(name, n=n))
    [points] = read(tmp_path)
    found = dict(zip(map(str, points.run), points.x["n"], strict=True))
    assert found == {"tied": 100, "untied": 100, "experts": 100}
    assert "without the input embedding" in points.about.n_convention
    [other] = read(tmp_path, Columns(n="total"))
    assert sorted(other.x["n"]) == [100, 140, 500]


def test_contrastive_runs_count_no_input_table_though_they_have_no_head(tmp_path: Path) -> None:
    pooled = {"total": 100, "embedding": 40, "head": 0, "active": 100, "non_embedding": 60}
    write(tmp_path, record("pairs", n=pooled, pairs=5))
    assert read(tmp_path)[0].x["n"] == pytest.approx([60])


def test_runs_that_did_not_finish_are_listed_and_never_fitted(tmp_path: Path) -> None:
    write(tmp_path, record("good"))
    write(tmp_path, record("wild", status="diverged"))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.yaml").write_text("")
    [points] = read(tmp_path)
    assert [str(name) for name in points.run] == ["good"]
    assert {(e.run, e.reason) for e in points.excluded} == {
        ("wild", "diverged"),
        ("cut", "not finished: it has no record.json"),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus_fingerprint": "other"}, "different corpora"),
        ({"tokenizer_hash": "other"}, "different tokenizers"),
        ({"versions": {"python": "3.12.1"}}, "different versions of Python"),
        ({"score": {"eval_hash": "other"}}, "different held-out sets"),
        ({"score": {"name": "recall"}}, "different scores"),
        ({"score": {"unit": "bits"}}, "different scores"),
        ({"pairs": 7}, "in pairs and in tokens"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    write(tmp_path, record("a"))
    write(tmp_path, record("b", **change))
    with pytest.raises(DataError, match=said):
        read(tmp_path)


CHANGED: dict[str, dict] = {
    "corpus": {"corpus_fingerprint": "other"},
    "tokenizer": {"tokenizer_hash": "other"},
    "python": {"versions": {"python": "3.12.1"}},
}


@pytest.mark.parametrize("field", SHARED)
def test_what_runs_must_share_is_the_same_for_a_fit_and_for_a_comparison(tmp_path: Path, field: str) -> None:
    made = {"a": record("a"), "b": record("b", **CHANGED[field])}
    for one in made.values():
        write(tmp_path, one)
    with pytest.raises(DataError, match=f"different {SHARED[field].many}"):
        read(tmp_path)
    with pytest.raises(DataError, match=f"have two {SHARED[field].many}"):
        require_alike(tmp_path, made)
    with pytest.raises(DataError, match="have two precisions"):
        require_alike(tmp_path, {"a": made["a"], "b": record("b", precision="bfloat16")})


def test_series_may_have_scores_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, record("a"))
    write(tmp_path, record("b", series="mlm", score={"name": "mlm_nats"}))
    assert [p.about.score for p in read(tmp_path)] == ["nats", "mlm_nats"]


def test_runs_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for seconds, part in enumerate(("first", "second"), 1):
        write(tmp_path / part, record("a", wall_seconds=float(seconds)))
    [points] = read(tmp_path)
    assert [str(name) for name in points.run] == ["first/a", "second/a"]
    assert points.n_units == 2


def test_a_copy_of_a_run_is_no_replicate(tmp_path: Path) -> None:
    for part in ("first", "second"):  # equal to the last measured second
        write(tmp_path / part, record("a"))
    [points] = read(tmp_path)
    assert [str(name) for name in points.run] == ["first/a"]
    assert [(e.run, e.reason) for e in points.excluded] == [("second/a", "a copy of first/a")]


def test_branches_of_a_trunk_are_one_unit(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path, record(f"r{i}", trunk="t1" if i < 2 else "t2"))
    [points] = read(tmp_path)
    assert (points.n_units, points.unit_name) == (2, "trunk")


def test_flops_are_the_records_and_their_law_by_size_is_kept(tmp_path: Path) -> None:
    for i, n in enumerate((1e5, 2e5, 4e5, 8e5)):
        count = {"total": int(n), "embedding": 0, "head": 0, "active": int(n), "non_embedding": int(n)}
        write(
            tmp_path,
            record(f"r{i}", n=count, raw_tokens=10**7, flops_model=int(6 * n * 1e7 * (1 + 1e3 * n**-0.5))),
        )
    [points] = read(tmp_path)
    assert points.convention.name == "flops_model"
    per_token = points.convention.per_token(points.x["n"])
    assert per_token == pytest.approx(points.x["c"] / points.x["d"], rel=0.01)
    assert read(tmp_path, Columns(c="flops_6nd"))[0].convention.name == "6ND"


def test_another_score_of_the_runs_may_be_fitted(tmp_path: Path) -> None:
    write(tmp_path, record("a", bits_per_byte=1.5))
    [points] = read(tmp_path, Columns(loss="bits_per_byte"))
    assert points.loss == pytest.approx([1.5])
    assert points.about.score_unit == "bits/byte"
    with pytest.raises(ConfigError, match="did you mean bits_per_byte"):
        read(tmp_path, Columns(loss="bits_per_bite"))


def test_a_folder_without_runs_and_a_broken_record_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no record\.json"):
        read(tmp_path)
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"run": "bad"}))
    with pytest.raises(DataError, match="is no record of a run"):
        read(tmp_path)


def test_options_of_tables_are_refused_for_folders(tmp_path: Path) -> None:
    write(tmp_path, record("a"))
    with pytest.raises(ConfigError, match="--where is for CSV files"):
        read(tmp_path, Columns(where=("a=b",)))
    with pytest.raises(ConfigError, match="did you mean total"):
        read(tmp_path, Columns(n="totl"))


def test_losses_of_records_are_numbers_above_zero(tmp_path: Path) -> None:
    write(tmp_path, record("a", score={"value": -1.0}))
    with pytest.raises(DataError, match="score of run a is -1"):
        read(tmp_path)


def test_what_warnings_look_at_is_read(tmp_path: Path) -> None:
    write(tmp_path, record("a", epochs=6.0, warmup_steps=50, steps=100, horizon_steps=200))
    [points] = read(tmp_path)
    assert {k: float(v[0]) for k, v in points.more.items()} == {
        "epochs": 6.0,
        "lr": 1e-3,
        "warmup": 0.5,
        "matched": 0.0,
        "steps": 100,
    }
    assert np.isfinite(points.loss).all()
