"""No config runs anything: a class that it names is one of ours, or of a package that the user trusts."""

import pytest

from answers import refused
from llmtrain.compose import instantiate, run_from
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError
from llmtrain.targets import TRUST_FILE, resolve

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
