"""What a comparison makes equal is equal: compute, cost a token, trials of the learning rate, held-out texts."""

import math
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from llmtrain.compare.load import contest_from
from llmtrain.compare.plan import Plan, kept_plan, make_plan
from llmtrain.compare.rates import next_rates
from llmtrain.compare.settings import Contest, HeldOut, Rates
from llmtrain.compare.size import series_of, sized
from llmtrain.compare.texts import held_out_texts
from llmtrain.data.corpus import SetAside
from llmtrain.data.neighbours import Candidates
from llmtrain.errors import ConfigError
from llmtrain.sweep.count import Series


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "text").mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("[a-d]*.py")):
        (folder / "text" / path.name).write_bytes(path.read_bytes()[:8192])
    return folder


def words(home: Path, name: str = "a", **own: Any) -> list[str]:
    """The quickstart's series on a little text, at a quarter of the budget."""
    small = {
        "name": name, "runs": home, "budgets": "[1e12]", "held_out.texts.share": 0.3,
    }  # fmt: skip
    common = [
        "data=text", f"data.source.paths=[{home}/text]", f"data.cache={home}/cache", "data.workers=1",
        "tokenizer=bytes", "tokenizer.n_sentinels=16", "trainer.threads=1",
    ]  # fmt: skip
    contest = contest_from(["comparison=quickstart"])
    kept = [w for w in contest.common if not w.startswith(("data", "tokenizer"))]
    given = [f"comparison.{key}={value}" for key, value in (small | own).items()]
    return ["comparison=quickstart", f"comparison.common=[{','.join(kept)}]", *given, *common]


def contest_of(home: Path, **own: Any) -> Contest:
    return contest_from(words(home, **own))


@pytest.fixture(scope="module")
def series(home: Path) -> dict[str, Series]:
    return series_of(contest_of(home), None)


@pytest.fixture(scope="module")
def plan(home: Path, series: dict[str, Series]) -> Plan:
    return make_plan(contest_of(home), series, workers=2, startup=None)


def test_models_of_all_series_cost_the_same_a_raw_token(plan: Plan) -> None:
    (reference,) = {cell.flops_per_token for cell in plan.cells if cell.series == "clm_dense"}
    for cell in plan.cells:
        assert cell.flops_per_token == pytest.approx(reference, rel=0.02), cell.series


def test_runs_of_a_budget_have_the_same_compute(plan: Plan) -> None:
    assert len(plan.cells) == 7 * 3
    for cell in plan.cells:
        assert cell.flops == cell.matched == pytest.approx(1e12, rel=0.01), cell.series


def test_an_encoder_decoder_shares_the_layers_out_and_experts_are_counted_twice(plan: Plan) -> None:
    depth = {c.series: next(w for w in c.words if w.startswith("model.n_layers=")) for c in plan.cells}
    assert depth.pop("denoising_dense") == "model.n_layers=2"
    assert set(depth.values()) == {"model.n_layers=4"}
    more = {c.series for c in plan.cells if c.n_total > c.n_active}
    assert more == {"clm_moe", "clm_hybrid"}


def test_no_run_reads_what_is_held_out_and_all_share_text_and_tokenizer(series: dict[str, Series]) -> None:
    assert len({one.prepared.fingerprint for one in series.values()}) == 1
    assert len({one.prepared.tokenizer.hash for one in series.values()}) == 1
    report = series["clm_dense"].prepared.report["parts"]["corpus"]
    assert report["set_aside"]["units"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("match", ["tokens", "time"])
def test_what_else_is_matched_is_what_the_run_of_the_baseline_comes_to(home: Path, match: str) -> None:
    contest = contest_of(
        home, match=match, seeds="[0,1,2]", series="{clm_dense: [model=dense], clm_moe: [model=moe]}"
    )
    plan = make_plan(contest, series_of(contest, None), workers=1, startup=None)
    assert len({cell.target for cell in plan.cells}) == 1
    for cell in plan.cells:
        assert cell.matched == pytest.approx(cell.target, rel=0.01)
    (reference,) = {cell.flops for cell in plan.cells if cell.series == "clm_dense"}
    assert reference == pytest.approx(1e12, rel=0.01)
    if match == "tokens":
        tokens = {cell.tokens for cell in plan.cells}
        assert max(tokens) == pytest.approx(min(tokens), rel=0.01)


def test_a_budget_of_few_steps_is_refused_where_no_whole_number_comes_near(
    home: Path, series: dict[str, Series]
) -> None:
    with pytest.raises(ConfigError, match="larger budget or a smaller batch_rows"):
        make_plan(contest_of(home, budgets="[5e10]"), series, workers=1, startup=None)


def test_a_size_that_no_series_can_have_is_refused(home: Path, series: dict[str, Series]) -> None:
    contest = contest_of(home, **{"size.within": 0.0001})
    with pytest.raises(ConfigError, match=r"no model costs .* nearest: "):
        sized(contest, series, 1e12)


def test_a_plan_is_kept_and_read_only_for_its_own_question(home: Path, plan: Plan) -> None:
    plan.write(home / "a")
    assert kept_plan(contest_of(home)) == plan
    assert kept_plan(contest_of(home, **{"launch.workers": 1})) == plan
    with pytest.raises(ConfigError, match=r"holds another comparison: seeds.*comparison\.name"):
        kept_plan(contest_of(home, seeds="[3,4,5]"))


# --- learning rates


@pytest.mark.parametrize("seed", range(20))
def test_every_series_gets_as_many_trials_as_any_other(seed: int) -> None:
    import random

    rng, rates = random.Random(seed), Rates(rates=3, widen=2)
    tried: dict[str, dict[float, float]] = {name: {} for name in "abc"}
    while asked := next_rates(tried, rates):
        assert asked.keys() == tried.keys() and len({len(lrs) for lrs in asked.values()}) == 1
        for name, lrs in asked.items():
            assert not set(lrs) & set(tried[name])
            tried[name] |= {lr: rng.choice([rng.random(), math.inf]) for lr in lrs}
    n = {len(losses) for losses in tried.values()}
    assert len(n) == 1 and 3 <= n.pop() <= 5


def test_trials_are_widened_for_all_where_the_best_of_one_is_the_last() -> None:
    rates = Rates(rates=3, first=0.01, factor=2.0, widen=1)
    inside = {0.005: 2.0, 0.01: 1.0, 0.02: 1.5}
    falling = {0.005: 3.0, 0.01: 2.0, 0.02: 1.0}
    assert next_rates({"a": inside, "b": inside}, rates) == {}
    assert next_rates({"a": inside, "b": falling}, rates) == {"a": [0.04], "b": [0.04]}
    rising = {lr: -loss for lr, loss in falling.items()}
    assert next_rates({"a": rising, "b": inside}, rates) == {"a": [0.0025], "b": [0.04]}


# --- held-out texts


def test_splits_share_no_file_and_nothing_near(home: Path) -> None:
    held = HeldOut(texts=SetAside(share=0.3))
    data = series_of(contest_of(home), None)["clm_dense"].run.data
    texts = held_out_texts(data, held)
    files = [{document.file for document in split} for split in texts]
    assert all(files) and not files[0] & files[1] and not files[1] & files[2] and not files[0] & files[2]
    n = sum(map(len, files))
    assert len(files[2]) == pytest.approx(0.3 * n, abs=1) and len(files[1]) == pytest.approx(0.2 * n, abs=1)
    for split in texts:
        others = [d.text.encode() for other in texts if other is not split for d in other]
        assert not Candidates((d.text.encode() for d in split), 0.3).near(others).tainted.any()
    assert held_out_texts(data, held) == texts


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("comparison=quikstart", "did you mean quickstart"),
        ("comparison.budgts=[1]", r"did you mean comparison\.budgets"),
        ("comparison.series.a=[seed=3]", "seed must be the same for all series"),
        ("comparison.series.a=[data=text]", "data must be the same"),
        ("comparison.baseline=clm_dens", "did you mean clm_dense"),
        ("comparison.seeds=[1,1,2]", "one of them twice"),
        ("comparison.match=flop", "flops"),
        ("comparison.held_out.dev=0.5", None),
        ("comparison.held_out.texts.share=2", "share"),
        ("comparison.name=../up", "name of one folder"),
        ("optim.rl=1", r"did you mean optim\.lr"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_right_word(word: str, said: str | None) -> None:
    more = ["comparison.held_out.test=0.5"] if said is None else []
    with pytest.raises(ConfigError, match=said or "nothing to train probes on") as refusal:
        contest_from(["comparison=quickstart", word, *more])
    assert "\n" not in str(refusal.value)


def test_an_experiment_that_brings_another_tokenizer_into_one_series_is_refused(home: Path) -> None:
    series = "{clm: [objective=clm], mlm: [experiment=mlm_dense]}"
    given = [word for word in words(home, series=series, baseline="clm") if not word.startswith("tokenizer")]
    with pytest.raises(ConfigError, match=r"comparison\.series\.mlm: tokenizer is not that of clm"):
        contest_from(given)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("features.poolings", "[last]", "without mean"),
        ("features.probing.C", "[]", "at least 1"),
        ("features.windows", "3", "greater than or equal to 4"),
        ("features.fine_tuning.rates", "[]", "at least 1"),
    ],
)
def test_what_would_fail_after_training_is_refused_before(
    home: Path, key: str, value: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        contest_of(home, **{key: value})


def test_a_law_without_the_series_is_named_with_the_way_out(home: Path, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text('{"version": 1, "series": {"dense": {}, "ssm": {}}}')
    size = "{_target_: llmtrain.compare.settings.OwnOptimum, fits: " + str(tmp_path) + "}"
    contest = contest_of(
        home, series="{clm: [objective=clm], mlm: [objective=mlm]}", baseline="clm", size=size
    )
    with pytest.raises(ConfigError, match=r"has no series clm: give the comparison's series the names"):
        sized(contest, series_of(contest, None), 1e12)
