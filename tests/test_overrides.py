"""What a user types: what is understood, and that a mistake is answered in one line with the way out."""

import shutil

import pytest
from omegaconf import OmegaConf

from answers import refused
from llmtrain.compose import CONFIGS, choices, compose, instantiate, keys, run_from
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError
from llmtrain.philox import generator
from llmtrain.typos import nearest_keys

LETTERS = "abcdefghijklmnopqrstuvwxyz_."


# ---- typos


@pytest.mark.fault("F41")
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("optm.lr=1", "optim.lr"),
        ("+optm.lr=1", "optim.lr"),
        ("++optm.lr=1", "optim.lr"),
        ("~optm.lr", "optim.lr"),
        ("lr=1e-3", "optim.lr"),
        ("model.lr=1e-3", "optim.lr"),
        ("d_model=64", "model.d_model"),
        ("d_modle=64", "model.d_model"),
        ("vocab_size=512", "tokenizer.vocab_size"),
        ("objectiv=clm", "objective"),
        ("model.layers.0.mixr.window=64", "model.layers.0.mixer.window"),
        ("model.layers[0].mixr.window=64", "model.layers.0.mixer.window"),
        ("model.layers.7.mixer.window=64", "model.layers.0.mixer.window"),
        ("seq_lne=128", "seq_len"),
        ("optim={lrr: 1}", "optim.lr"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(word, meant):
    key = word.partition("=")[0].lstrip("+~")
    assert f"unknown key {key}" in refused(word) or f"unknown key {key}.lrr" in refused(word)
    assert f"did you mean {meant}" in refused(word)


@pytest.mark.parametrize("word", ["+new.key=1", "zzzzzz=1", "hydra.run.dir=x"])
def test_a_key_that_is_near_none_is_answered_with_those_there_are(word):
    assert "unknown key" in refused(word) and "seq_len" in refused(word)


@pytest.mark.fault("F41")
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("model=dens", "model=dense"),
        ("experiment=quikstart", "experiment=quickstart"),
        ("+experiment=quikstart", "experiment=quickstart"),
        ("logger=wndb", "logger=wandb"),
    ],
)
def test_an_unknown_choice_is_answered_with_the_nearest_and_all(word, meant):
    group = meant.partition("=")[0]
    line = refused(word)
    assert f"did you mean {meant}?" in line
    assert line.endswith(", ".join(choices()[group]))


@pytest.mark.fault("F41")
def test_the_first_suggestion_is_right_for_at_least_95_of_100_single_slips_of_the_pen():
    known = [*choices(), *keys(OmegaConf.to_container(compose([])))]
    rng = generator(0, "typos")
    slips = [(key, slip(key, rng)) for key in known for _ in range(4)]
    slips = [(key, wrong) for key, wrong in slips if wrong not in known and wrong]
    right = [next(iter(nearest_keys(wrong, known)), None) == key for key, wrong in slips]
    assert len(slips) > 300
    assert sum(right) / len(right) >= 0.95


def slip(word: str, rng) -> str:
    """One letter too many, too few, another, or two swapped."""
    at, letter = int(rng.integers(len(word))), LETTERS[rng.integers(len(LETTERS))]
    swapped = word[at : at + 2][::-1]
    made = [letter + word[at:], word[at + 1 :], letter + word[at + 1 :], swapped + word[at + 2 :]]
    return word[:at] + made[rng.integers(4)]


# ---- the form of an override


@pytest.mark.parametrize(
    ("words", "right_form"),
    [
        (["model.layers[0].mixer.window=64"], "model.layers.0.mixer.window"),
        (["quickstart"], "experiment=quickstart"),
        (["model"], "model=CHOICE"),
        (["foo"], "seed=1"),
        (["=3"], "seed=3"),
        (["seed", "=", "3"], "seed=3"),
        (["seed", "=3"], "seed=3"),
        (["model@here=dense"], "KEY=VALUE"),
        (["data=text", "data.source.paths=[a.txt,", "b.txt]"], "'data.source.paths=[a.txt, b.txt]'"),
        (["data=text", "data.source.paths=[a.txt"], "'data.source.paths=[a.txt]'"),
        (["name='a"], "opens a bracket or a quote"),
        (["data=text", "data.source.paths=a.txt,b.txt"], "data.source.paths=[a.txt,b.txt]"),
        (["model=dense,dense_gelu"], "give one choice"),
        (["~optim.lr"], "optim.lr=VALUE"),
        (["~model"], "choose one of"),
        (["checkpoint=5"], "checkpoint.every"),
        (["data=text"], "data.source.paths=VALUE"),
    ],
)
def test_what_is_no_override_is_answered_with_the_right_form(words, right_form):
    assert right_form in refused(*words)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("tokens=2e6", "tokens", 2_000_000),
        ("optim.lr=1e-3", "optim.lr", 0.001),
        ("+optim.lr=1", "optim.lr", 1),
        ("name=001", "name", "001"),
        ("name=1e3", "name", "1e3"),
        ("name='null'", "name", "null"),
        ("name=a=b (c) d", "name", "a=b (c) d"),
        ("name=実験", "name", "実験"),
        ("seed_init=${seed}", "seed_init", 0),
        ("model.layers.0.mixer.head_dim=32", "model.layers.0.mixer.head_dim", 32),
        ("optim.betas=[0.8, 0.9]", "optim.betas", [0.8, 0.9]),
        ("optim.betas.1=0.99", "optim.betas.1", 0.99),
        ("optim={lr: 0.5}", "optim.lr", 0.5),
        ("checkpoint={every: 7}", "checkpoint.every", 7),
        ("data.max_bytes=1_000_000", "data.max_bytes", 1_000_000),
    ],
)
def test_a_value_is_read_as_it_was_meant(word, key, value):
    assert OmegaConf.select(compose([word]), key) == value


def test_lists_of_paths_may_hold_any_letters():
    cfg = compose(["data=text", "data.source.paths=[日本.txt, my notes.txt]"])
    assert cfg.data.source.paths == ["日本.txt", "my notes.txt"]


def test_names_of_the_users_own_can_be_added_and_taken_away():
    cfg = compose(["data=mix", "~data.components.text", "~data.weights.text", "data.weights.more=2"])
    assert list(cfg.data.components) == ["python"]
    assert cfg.data.weights == {"python": 0.5, "more": 2}
    assert compose(["data=mix", "~data.components.text", "data.weights={python: 1}"]).data.weights == {
        "python": 1
    }


def test_a_set_to_hold_out_is_given_by_its_paths_or_as_a_source():
    hub = "{_target_: llmtrain.data.sources.hub.Hub, path: wikitext, split: validation}"
    sets = run_from(["data.held_out.news=[a.txt, b/*.txt]", f"data.held_out.wiki={hub}"]).data.held_out
    assert (sets["news"].paths, sets["wiki"].path) == (("a.txt", "b/*.txt"), "wikitext")
    assert "unknown key data.held_out.news.pathz" in refused(
        "data.held_out.news={_target_: llmtrain.data.sources.text.TextFiles, pathz: a.txt}"
    )
    assert refused("data.held_out.news=3") == "data.held_out.news: got 3, expected a config of class Source"


def test_a_length_that_is_given_takes_the_place_of_the_one_in_the_file():
    made = run_from(["experiment=quickstart", "name=a", "tokens=1e5", "seed=1"])
    assert (made.tokens, made.steps, made.tokens_per_param) == (1e5, None, None)
    assert "steps=5 and tokens=100" in refused("steps=5", "tokens=100")


def test_values_that_an_experiment_set_for_another_choice_are_left_out_aloud(caplog):
    with caplog.at_level("INFO", "llmtrain"):
        cfg = compose(["experiment=quickstart", "tokenizer=bytes"])
    assert "vocab_size" not in cfg.tokenizer
    assert "tokenizer=bytes has no tokenizer.vocab_size" in caplog.text


def test_a_run_is_labelled_by_its_choices_unless_the_user_does():
    labels = run_from(
        ["experiment=quickstart", "model=dense_gelu", "size=d6", "labels.experiment=mine"]
    ).labels
    assert (labels.experiment, labels.objective, labels.architecture, labels.size) == (
        "mine",
        "clm",
        "dense_gelu",
        "d6",
    )
    # a dial that was turned further is no longer what its name says
    assert run_from(["size=d6", "model.d_model=64"]).labels.size is None
    assert run_from(["size=n", "size.n=3e5"]).labels.size is None


@pytest.mark.fault("F41")
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "optim: {lrr: 1}",
            "configs/experiment/mine.yaml sets an unknown key optim.lrr: did you mean optim.lr?",
        ),
        ("stepz: 3", "configs/experiment/mine.yaml sets an unknown key stepz: did you mean steps"),
        ("defaults: [{override /model: dens}]", "Could not find 'model/dens'"),
        ("steps: [3", "configs/ cannot be composed"),
        ("logger: {_target_: os.system}", "logger._target_=os.system is outside llmtrain"),
        ("name: ${oc.env:HOME}", "only another key may be referred to"),
    ],
)
def test_a_mistake_in_an_experiment_of_the_users_own_is_answered_too(tmp_path, monkeypatch, text, answer):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr("llmtrain.compose.CONFIGS", tmp_path / "configs")
    mine = tmp_path / "configs" / "experiment" / "mine.yaml"
    mine.write_text(f"# @package _global_\n# Mine.\n{text}\n")
    assert answer in refused("experiment=mine")


# ---- wrong values


@pytest.mark.fault("F42")
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seq_len=abc", "seq_len: got 'abc', expected an integer"),
        ("steps=-5", "steps: got -5, expected a number greater than 0"),
        ("steps=2.5", "steps: got 2.5, expected an integer"),
        ("model.norm=middle", "model.norm: got 'middle', expected 'pre' or 'sandwich'"),
        ("trainer.precision=bf61", "did you mean bf16?"),
        ("optim.betas=[0.9]", "optim.betas: got [0.9], expected at least 2 items"),
        ("optim.lr=null", "optim.lr: got null, expected a number"),
        ("model.layers.0.mixer.head_dim=-1", "model.layers.0.mixer.head_dim must be"),
        ("model.layers=3", "model.layers: got 3, expected a list"),
        ("model.layers=[]", "model.layers is empty"),
        ("steps=null", "give the run's length as one of steps, tokens"),
        ("name=a/b", "name='a/b'"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_and_what_is_allowed(word, line):
    assert line in refused(word)


def test_a_run_survives_the_way_into_its_folder_and_back():
    made = run_from(["experiment=clm_dense", "seed=3"])
    assert instantiate(to_plain(made)) == made


@pytest.mark.fault("F41")
def test_a_saved_config_with_a_field_that_is_gone_says_which():
    saved = to_plain(run_from([]))
    saved["optim"]["momentun"] = 1
    with pytest.raises(ConfigError, match=r"unknown key optim\.momentun: did you mean momentum\?"):
        instantiate(saved)
