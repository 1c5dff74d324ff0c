"""What a user types: what is understood, and that a mistake is answered in one line with the way out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmtrain import cli
from llmtrain.compose import CONFIGS, choices, compose, instantiate, keys, run_from
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError, DataError
from llmtrain.philox import generator
from llmtrain.targets import TRUST_FILE, resolve
from llmtrain.typos import nearest_keys

REPO = Path(__file__).resolve().parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz_."


def refused(*words: str) -> str:
    """The one line that answers ``words``."""
    with pytest.raises(ConfigError) as error:
        run_from(words)
    assert "\n" not in str(error.value)
    return str(error.value)


def run(*words: str, home: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["train.py"]), *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"HOME": str(home)} if home else {})
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=250)


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


# ---- trust

GADGETS = [
    "os.system",
    "builtins.open",
    "pathlib.Path.write_text",
    "torch.load",
    "torch.hub.load",
    "code.InteractiveInterpreter",
    "subprocess.Popen",
    "llmtrainx.evil.Class",
    "${name}",
    "",
    "os",
]


@pytest.mark.fault("F47")
@pytest.mark.parametrize("target", GADGETS)
def test_a_target_from_elsewhere_is_refused_before_anything_is_imported(target):
    line = refused(f"model.layers.0.mixer._target_={target}")
    assert line.startswith("model.layers.0.mixer._target_=")
    assert "outside llmtrain" in line or "names no class" in line


@pytest.mark.fault("F47")
@pytest.mark.parametrize(
    "target",
    [
        "llmtrain.run.os.system",
        "llmtrain.run.json",
        "llmtrain.run.dataclasses.replace",
        "llmtrain.run_folder.subprocess.Popen",
        "llmtrain.run_folder.write_text",
        "llmtrain.cli.main",
        "llmtrain.nn.mixers.attention.AttentionModule",
        "llmtrain.nope.Class",
    ],
)
def test_a_target_of_ours_that_is_no_config_is_refused(target):
    with pytest.raises(ConfigError, match=r"no such class|no config"):
        resolve(target)
    saved = to_plain(run_from([]))
    saved["logger"] = {"_target_": target}
    with pytest.raises(ConfigError, match=r"logger\._target_"):
        instantiate(saved)


@pytest.mark.parametrize(
    "word",
    [
        "optim._args_=[1]",
        "+optim._partial_=true",
        "optim={_recursive_: false}",
        "model.layers=[{_target_: llmtrain.nn.model.Layer, _partial_: true}]",
        "name=${oc.env:HOME}",
        "name=${oc.env:${name}}",
        "name=a${oc.decode:x}",
        "runs=${seed",
    ],
)
def test_nothing_in_a_config_runs_by_itself(word):
    assert "not allowed" in refused(word) or "only another key may be referred to" in refused(word)


def test_an_interpolation_of_a_key_that_is_not_there_is_refused_with_its_place():
    assert refused("seed_init=${sed}") == "seed_init: Interpolation key 'sed' not found"


@pytest.mark.fault("F47")
def test_a_package_is_trusted_iff_a_file_of_the_user_names_it(tmp_path, monkeypatch):
    package = tmp_path / "homemade.py"
    package.write_text(
        "from llmtrain.callbacks.loggers.base import Logger\n"
        "from llmtrain.config import config\n"
        "@config\n"
        "class Quiet(Logger):\n"
        "    def open(self, folder, run_config):\n"
        "        return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("llmtrain.targets._home", lambda: tmp_path)
    word = "logger._target_=homemade.Quiet"
    assert "outside llmtrain" in refused(word)
    trust = tmp_path / TRUST_FILE
    trust.parent.mkdir(parents=True)
    trust.write_text("# mine\nhomemade\n")
    trust.chmod(0o600)
    assert type(run_from([word]).logger).__name__ == "Quiet"
    assert "no config" in refused("logger._target_=homemade.config")
    trust.chmod(0o666)
    assert "can be written by others" in refused(word)


# ---- the command


COMMANDS = [  # words, exit code, what is said
    (["--help"], 0, "experiments"),
    (["-h", "optm.lr=1"], 0, "experiments"),
    (["--cfg", "optim.lr=0.5"], 0, "lr: 0.5"),
    (["optm.lr=1"], 2, "error: unknown key optm.lr: did you mean optim.lr?"),
    (["model=dens"], 2, "error: unknown choice"),
    (["--hepl"], 2, "did you mean --help?"),
    (["-m", "seed=1,2"], 2, "one command is one run"),
    (["logger._target_=os.system"], 2, "outside llmtrain"),
]


def test_help_and_mistakes_need_neither_torch_nor_lightning():
    code = f"""
import contextlib, io, json, sys
from llmtrain.cli import main
for words in {[words for words, _, _ in COMMANDS]!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
    assert not {{'torch', 'lightning', 'datasets', 'transformers'}} & sys.modules.keys(), words
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    for (words, exit_code, said), (code, out, err) in zip(COMMANDS, answers, strict=True):
        assert code == exit_code, words
        assert said in out + err
        if exit_code:
            assert (out, err.count("\n")) == ("", 1)


def test_help_names_every_experiment_group_choice_and_key():
    text = run("--help").stdout
    for group, names in choices().items():
        assert group in text
        assert all(name in text for name in names)
    assert all(f"  {key}=" in text for key in ("name", "seed", "seq_len", "steps", "checkpoint.every"))


def test_an_error_ends_with_its_own_exit_code_and_an_interrupt_with_130(monkeypatch, capsys):
    def fails(error):
        def train(run, overrides):
            raise error

        monkeypatch.setattr("llmtrain.pretrain.train", train)
        return cli.main(["name=a"])

    assert fails(DataError("no text")) == 3
    assert capsys.readouterr().err == "error: no text\n"
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(AttributeError):  # a bug keeps its traceback
        fails(AttributeError())


@pytest.mark.slow
def test_a_run_ends_with_a_summary_and_a_second_start_prints_its_record(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("".join(f"line {i} of some text, which says {i * 7919 % 1000}\n" for i in range(2000)))
    words = [
        *("name=a", "steps=2", "size=d1", "seq_len=32", "batch_rows=2", f"runs={tmp_path}", "eval.samples=0"),
        *("data=text", f"data.source.paths={text}", f"data.cache={tmp_path / 'cache'}", "data.workers=1"),
        *("tokenizer=bytes", "tokenizer.n_sentinels=0", "optim=adamw", "data.validation_min_bytes=2000"),
    ]
    assert cli.main(words) == 0
    summary = capsys.readouterr().out
    for said in ("bits per byte", "tokens/s", "MFU", "samples.md", "loss.png", "record.json"):
        assert said in summary
    assert cli.main(words) == 0
    again = capsys.readouterr()
    assert "is finished" in again.err
    assert json.loads(again.out) == json.loads((tmp_path / "a" / "record.json").read_text())
    assert cli.main([*words, "optim.lr=0.5"]) == 2
    other = capsys.readouterr().err
    assert "optim.lr: 0.003 there, 0.5 now" in other and other.count("error") == 1
