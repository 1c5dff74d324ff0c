"""What is larger than its file, or names what is not ours, is refused before anything is allocated or imported."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

import llmtrain
from llmtrain import cli
from llmtrain.compose import compose, instantiate
from llmtrain.config import to_plain
from llmtrain.errors import ConfigError
from llmtrain.export.pretrained import load_pretrained
from llmtrain.targets import TRUST_FILE
from test_export import RUNS, trained  # a run of each kind that can be exported

# ---- F46: sizes that are not there


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


BOMBS = {
    "shape": header(w={"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 16]}),
    "product": header(w={"dtype": "F32", "shape": [1 << 30, 1 << 30, 1 << 30], "data_offsets": [0, 16]}),
    "negative": header(w={"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}),
    "dtype": header(w={"dtype": "OBJECT", "shape": [4], "data_offsets": [0, 16]}),
    "header longer than the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "short": b"\1\2",
}


@pytest.mark.fault("F46")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_public_folder_with_an_impossible_header_is_refused_before_allocation(
    tmp_path: Path, bomb: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(BOMBS[bomb])
    with pytest.raises(ConfigError, match="no whole safetensors file"):
        load_pretrained(tmp_path)


@pytest.mark.fault("F46")
@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 10**12},
        {"hidden_size": 10**9, "num_attention_heads": 1},
        {"num_hidden_layers": 10**9, "layer_types": None},
        {"num_hidden_layers": 60_000, "layer_types": None},
        {"intermediate_size": 190_000},
    ],
    ids=str,
)
def test_a_config_that_describes_more_than_the_files_hold_is_refused_before_allocation(
    tmp_path: Path, sizes: dict[str, Any]
) -> None:
    from llmtrain.export.folder import export

    objective, cfg, _ = RUNS["clm"]
    export(trained(objective, cfg, tmp_path / "tokenizer"), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    with pytest.raises(ConfigError, match=r"more than|its files hold"):
        load_pretrained(tmp_path / "out")


# ---- F47: what a config may name


@pytest.mark.fault("F47")
@pytest.mark.parametrize(
    "gadget",
    [
        "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.open",
        "pickle.loads", "runpy.run_path", "importlib.import_module", "timeit.timeit", "cProfile.run",
        "hydra.utils.instantiate", "hydra.utils.call", "torch.hub.load", "torch.load", "pathlib.Path.write_text",
        "code.InteractiveInterpreter", "lightning.pytorch.Trainer", "lightning.fabric.utilities.cloud_io._load",
        "llmtrain", "llmtrain.", "llmtrain.run.os.system", "llmtrain.run_folder.subprocess.Popen",
        "llmtrain.compose.run_from", "llmtrain_evil.Class", "LLMTRAIN.run.Run", "llmtrain..os.system",
        "llmtrain.run.Run.__init__", "llmtrain.targets.importlib.import_module", " os.system", "os\n.system",
    ],
)  # fmt: skip
def test_a_gadget_is_refused_wherever_it_stands(gadget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = to_plain(instantiate(compose([])))
    imported = []
    monkeypatch.setattr("llmtrain.targets.importlib.import_module", lambda n: imported.append(n) or runpy)
    for where in (plain, plain["logger"], plain["model"]["layers"][0]["mixer"]):
        before, where["_target_"] = where["_target_"], gadget
        with pytest.raises(ConfigError, match="_target_"):
            instantiate(plain)
        where["_target_"] = before
    assert all(name == "llmtrain" or name.startswith("llmtrain.") for name in imported)


@pytest.mark.fault("F47")
def test_nothing_but_the_users_own_file_widens_what_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for folder in (tmp_path / TRUST_FILE).parent, tmp_path / "llmtrain":
        folder.mkdir(parents=True)
        (folder / TRUST_FILE.name).write_text("evil\n")
    for variable in ("HOME", "XDG_CONFIG_HOME", "LLMTRAIN_TRUST", "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE"):
        monkeypatch.setenv(variable, "evil" if "LIST" in variable else str(tmp_path))
    for word in ("--trust-config", "--trust=evil", "trust=[evil]", "+hydra.searchpath=[evil]"):
        assert cli.main(["logger._target_=evil.Class", word]) == 2
    assert cli.main(["logger._target_=evil.Class"]) == 2
    assert "outside llmtrain" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.fault("F47")
def test_a_trust_file_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = tmp_path / TRUST_FILE
    trust.parent.mkdir(parents=True)
    trust.write_text("homemade\n")
    trust.chmod(0o600)
    monkeypatch.setattr("llmtrain.targets._home", lambda: tmp_path)
    assert llmtrain.targets.trusted() == ("homemade",)
    monkeypatch.setattr(os, "getuid", lambda: trust.stat().st_uid + 1)
    if trust.stat().st_uid:  # root's are believed
        with pytest.raises(ConfigError, match="belongs to another user"):
            llmtrain.targets.trusted()
