"""What came from elsewhere is data: it runs nothing, leaves no folder, allocates nothing, and tells no secret."""

import ast
import io
import json
import os
import pickle
import re
import runpy
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import llmtrain
from llmtrain import cli
from llmtrain.checkpoint import find
from llmtrain.compose import CONFIGS, choices, compose, instantiate, keys
from llmtrain.config import to_plain
from llmtrain.data.digests import Digests
from llmtrain.data.sources.base import Tally
from llmtrain.data.sources.hub import Hub
from llmtrain.errors import ConfigError, DataError, UserError
from llmtrain.export.pretrained import load_pretrained
from llmtrain.loading import load_run
from llmtrain.markup import fenced, inline
from llmtrain.pretrain import train
from llmtrain.redaction import REDACTED, is_secret, redact, redacted
from llmtrain.targets import TRUST_FILE
from runs import REPO, overrides, tiny, write_text
from test_export import RUNS, trained  # a run of each kind that can be exported

SMALL: dict[str, Any] = {"seq_len": 64, "steps": 2, "eval__samples": 1, "eval__rows": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text that is prepared, and a run, as ``whole``."""
    folder = tmp_path_factory.mktemp("security")
    write_text(folder)
    train(tiny(folder, name="whole", **SMALL))
    return folder


class Payload:
    """Executed, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"mkdir {self.marker}",)


@pytest.fixture
def payload(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that shows itself when it is read by whatever executes it; it must not have been, in the end."""
    marker = tmp_path / "executed"
    yield pickle.dumps(Payload(marker))
    assert not marker.exists()


def test_the_payload_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


# ---- F45: nothing that is read is executed


def objects(payload: bytes) -> bytes:
    """An .npy file whose array of objects is the payload."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return head.getvalue() + payload


@pytest.mark.fault("F45")
@pytest.mark.parametrize(
    "slot", ["init_from", "tokenizer.huggingface", "tokenizer.sentencepiece_model", "jsonl", "parquet"]
)
def test_a_pickle_where_a_config_names_a_file_is_refused(
    home: Path, tmp_path: Path, payload: bytes, slot: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {}
    if slot == "init_from":
        file = tmp_path / "lightning.ckpt"
        torch.save({"state_dict": Payload(tmp_path / "executed")}, file)
        changes = {"init_from": file}
    elif slot.startswith("tokenizer"):
        file = tmp_path / "tokenizer.pkl"
        file.write_bytes(payload)
        changes = {"tokenizer": slot.partition(".")[2], "tokenizer__file": file}
    else:
        file = tmp_path / f"text.{slot}"
        file.write_bytes(payload)
        changes = {"data__source__paths": f"[{file}]"}
    assert cli.main(overrides(home, name=f"pickle-{slot}", **(SMALL | changes))) in {2, 3}
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.fault("F45")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "training_args.bin"])
def test_a_public_folder_with_pickles_alone_is_refused(tmp_path: Path, payload: bytes, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(ConfigError, match="holds no safetensors, and nothing else is read"):
        load_pretrained(tmp_path)


@pytest.mark.fault("F45")
def test_pickles_in_the_place_of_any_file_of_a_run_are_not_executed(
    home: Path, tmp_path: Path, payload: bytes
) -> None:
    files = [
        p.relative_to(home / "runs" / "whole") for p in (home / "runs" / "whole").rglob("*") if p.is_file()
    ]
    assert {p.name for p in files} >= {"config.yaml", "state.json", "model.safetensors", "manifest.json"}
    for number, file in enumerate(files):
        copy = tmp_path / str(number) / "whole"
        shutil.copytree(home / "runs" / "whole", copy)
        (copy / file).write_bytes(payload)
        try:
            load_run(copy)
        except UserError:
            continue
        assert (
            file.parts[0] not in {"config.yaml", "tokenizer", "checkpoints"}
            or "optim" in file.name
            or (file.name.startswith(("rng", "averages")))
        ), f"{file} was believed"


@pytest.mark.fault("F45")
def test_pickles_in_the_cache_of_a_corpus_are_not_executed(
    home: Path, tmp_path: Path, payload: bytes
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(home / "cache", cache)
    files = [p for p in cache.rglob("*") if p.is_file() and p.suffix in {".npz", ".npy", ".json", ".bin"}]
    assert any(p.suffix == ".npz" for p in files)
    for file in files:
        before = file.read_bytes()
        for content in (payload, objects(payload)):
            file.write_bytes(content)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("llmtrain.data.prepare.write_shards", lambda *a, **k: pytest.fail("made anew"))
                try:
                    from llmtrain.data.prepare import prepare

                    run = tiny(home, **(SMALL | {"data__cache": cache}))
                    prepare(run.data, run.tokenizer)
                except UserError:
                    pass
        file.write_bytes(before)


@pytest.mark.fault("F45")
@pytest.mark.parametrize("kind", ["pandas", "webdataset"])
def test_formats_of_datasets_that_could_hold_pickles_are_not_executed(
    tmp_path: Path, payload: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    file = tmp_path / "data.pkl"
    file.write_bytes(payload)
    if kind == "webdataset":
        file = tmp_path / "data.tar"
        with tarfile.open(file, "w") as tar:
            for name in ("0.pyd", "0.pickle", "0.pth", "0.npy"):
                info = tarfile.TarInfo(name)
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    with pytest.raises(DataError):
        list(Hub(path=kind, data_files=str(file)).documents(Tally()))


BANNED = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("dill", "load"), ("dill", "loads"),
    ("joblib", "load"), ("yaml", "load"), ("yaml", "full_load"), ("yaml", "unsafe_load"), ("shelve", "open"),
    ("marshal", "loads"), ("torch", "save"), ("pickle", "dump"), ("pickle", "dumps"), ("os", "system"),
    ("tarfile", "open"), ("torch", "hub"),
}  # fmt: skip
BANNED_OPTIONS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "shell": True}


def violations(source: str) -> list[str]:
    """What a file of ours may not do, as ``line: what``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            found += [
                f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in {"pickle", "dill", "shelve"}
            ]
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile", "__import__"}:
            found.append(f"{node.lineno}: {node.func.id}")
        options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            name = (node.func.value.id, node.func.attr)
            if name in BANNED or (name == ("torch", "load") and options.get("weights_only") is not True):
                found.append(f"{node.lineno}: {'.'.join(name)}")
            if name == ("np", "load") and options.get("allow_pickle") is not False:
                found.append(f"{node.lineno}: np.load without allow_pickle=False")
        found += [
            f"{node.lineno}: {k}={v}"
            for k, v in options.items()
            if k in BANNED_OPTIONS and v is BANNED_OPTIONS[k]
        ]
    return found


@pytest.mark.fault("F45", "F49")
def test_no_file_of_ours_reads_or_writes_pickles_or_runs_what_it_reads() -> None:
    files = [REPO / "train.py", *(REPO / "scripts").rglob("*.py"), *(REPO / "llmtrain").rglob("*.py")]
    assert len(files) > 100
    assert {str(f): v for f in files if (v := violations(f.read_text(encoding="utf-8")))} == {}


@pytest.mark.fault("F45")
@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec(x)", "torch.load(f)",
        "torch.load(f, weights_only=False)", "np.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f)",
        "A.from_pretrained(x, trust_remote_code=True)", "os.system(x)", "subprocess.run(x, shell=True)",
    ],
)  # fmt: skip
def test_the_static_check_sees(line: str) -> None:
    assert len(violations(line)) >= 1
    assert violations("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); model.eval()") == []


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


# ---- F48: secrets

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "A1b2C3d4" * 4,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIexampleK7MDENGbPxRfiCY",
    "MY_DB_PASSWORD": "correct-horse-battery",
}


@pytest.mark.fault("F48")
def test_no_secret_is_in_any_file_or_word_of_a_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    word = SECRETS["MY_DB_PASSWORD"]
    words = overrides(home, name="secrets", labels__series=f"https://me:{word}@host/x", **SMALL)
    monkeypatch.setattr("sys.argv", ["train.py", *words, f"token={SECRETS['HF_TOKEN']}"])
    assert cli.main(words) == 0
    assert cli.main([*words, f"optim.api_key={SECRETS['HF_TOKEN']}"]) == 2
    said = "".join(capfd.readouterr())
    files = [p for p in (home / "runs" / "secrets").rglob("*") if p.is_file()]
    texts = {str(p): p.read_bytes().decode(errors="replace") for p in files} | {"the terminal": said}
    del texts[str(home / "runs" / "secrets" / "record.json")]  # series is a name of the user's own
    for value in SECRETS.values():
        assert [where for where, text in texts.items() if value in text] == []
    for name in ("config.yaml", "overrides.yaml", "environment.json"):
        assert REDACTED in (home / "runs" / "secrets" / name).read_text()
    assert cli.main(words) == 0, "the same command still finds its run"
    assert "is finished" in capfd.readouterr().err


@pytest.mark.fault("F48")
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://bucket?X-Amz-Signature=abcdef&x=1", "s3://bucket?" + REDACTED + "&x=1"),
        ("https://me:secret@host/data", f"https://{REDACTED}@host/data"),
        ("sk-" + "a1" * 12, REDACTED),
        ("ghp_" + "a1B2" * 6, REDACTED),
        ("AKIA" + "ABCD1234" * 2, REDACTED),
        ("data.source.token=abc", f"data.source.token={REDACTED}"),
        ("api_key=abc other=x", f"api_key={REDACTED} other=x"),
        ("tokens=1e9 seq_len=256 optim.lr=0.1", "tokens=1e9 seq_len=256 optim.lr=0.1"),
        ("8,192 tokens/s, see https://host/a@b", "8,192 tokens/s, see https://host/a@b"),
    ],
)
def test_a_text_loses_its_secrets_alone(text: str, kept: str) -> None:
    assert redact(text) == kept


@pytest.mark.fault("F48")
def test_no_key_of_the_configs_is_taken_for_a_secret() -> None:
    for group, names in choices().items():
        for name in names:
            plain = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
            assert not [key for key in keys(plain) if is_secret(key)]
    assert redacted({"tokens": "5", "hub": [{"token": "x"}]}) == {"tokens": "5", "hub": [{"token": REDACTED}]}


@pytest.mark.fault("F48")
@pytest.mark.parametrize("word", ["name=${oc.env:HF_TOKEN}", "runs=${oc.env:HOME}", "name=${oc.decode:x}"])
def test_no_resolver_reads_the_environment(word: str) -> None:
    with pytest.raises(ConfigError, match="resolvers are not run"):
        compose([word])


# ---- F49: code beside weights


@pytest.mark.fault("F49")
def test_code_beside_a_dataset_is_not_run_and_a_revision_can_be_pinned(tmp_path: Path) -> None:
    repo = tmp_path / "data"
    repo.mkdir()
    (repo / "data.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    for path in (repo, repo / "data.py"):
        with pytest.raises(DataError):
            list(Hub(path=str(path)).documents(Tally()))
    assert not (tmp_path / "executed").exists()
    one, two = (
        Hub(path="a/b", revision=r).fingerprint(Digests(tmp_path / "d.json")) for r in ("1" * 40, "2" * 40)
    )
    assert one != two


# ---- F50: names stay where they belong

BAD_NAMES = ["../up", "/etc/x", "a/b", "..", ".", "a\\b", "a\nb", "a\0b"]


@pytest.mark.fault("F50")
@pytest.mark.parametrize("key", ["name", "labels__experiment"])
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_the_folder_of_a_run_is_directly_under_runs(tmp_path: Path, key: str, name: str) -> None:
    plain = to_plain(tiny(tmp_path))
    where = plain if key == "name" else plain["labels"]
    where[key.rpartition("__")[2]] = name
    with pytest.raises(ConfigError, match="must be the name of one folder"):
        instantiate(plain)


@pytest.mark.fault("F50")
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_the_name_of_a_part_or_a_set_leads_nowhere(tmp_path: Path, name: str) -> None:
    plain = to_plain(tiny(tmp_path))
    plain["data"]["held_out"] = {name: plain["data"]["source"]}
    with pytest.raises(ConfigError):
        instantiate(plain)


@pytest.mark.fault("F50")
def test_a_link_in_the_place_of_a_checkpoints_file_is_refused(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "linked"
    shutil.copytree(home / "runs" / "whole", copy)
    path = find(copy)
    assert path is not None
    moved = tmp_path / "elsewhere.safetensors"
    (path / "model.safetensors").rename(moved)
    (path / "model.safetensors").symlink_to(moved)
    with pytest.raises(UserError):
        load_run(copy)


@pytest.mark.fault("F50")
@pytest.mark.parametrize("suffix", ["tar", "zip", "tar.gz", "tgz", "tar.zst"])
def test_archives_are_not_unpacked(
    home: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"text.{suffix}"
    file.write_bytes(b"PK\3\4" if suffix == "zip" else b"\0" * 1024)
    changes = SMALL | {"data__source__paths": f"[{file}]"}
    assert cli.main(overrides(home, name=f"archive-{suffix}", **changes)) == 3
    assert "the format is not known by its suffix" in capsys.readouterr().err
    used = {
        m
        for p in (REPO / "llmtrain").rglob("*.py")
        for m in re.findall(r"\b(tarfile|extractall|unpack_archive)\b", p.read_text())
    }
    assert not used


# ---- F51: text of others in reports


@pytest.mark.fault("F51")
@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</code><img src=x onerror=y>",
        "```\n<b>",
        "~~~\n````\n<b>",
        "[a](javascript:x)",
        "a\r# b",
    ],
)
def test_text_of_others_ends_no_block_and_makes_no_tag(text: str) -> None:
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark", {"html": True}).render(f"# {inline(text)}\n\n{fenced(text)}\n\nend\n")
    assert not re.search(r"<(script|img|b|a)\b", html)
    assert html.count("<h1>") == html.count("<pre>") == 1 and "<p>end</p>" in html


@pytest.mark.fault("F51")
def test_control_characters_are_shown_and_words_are_left_alone() -> None:
    assert fenced("a\x1b[31mb\x00") == "```text\na<U+001B>[31mb<U+0000>\n```"
    assert inline("clm_dense-1a2b: first") == "clm_dense-1a2b: first"
    assert inline('one\'s "own"') == 'one\'s "own"'


@pytest.mark.fault("F51")
def test_samples_and_figures_of_a_run_with_such_a_name_hold_no_tag(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "<script>alert(1)<script>--><b>"
    train(tiny(home, name=name, **SMALL))
    folder = home / "runs" / name
    text = (folder / "samples.md").read_text()
    assert "<script>" not in text.partition("```")[0]
    assert "<script>" not in (folder / "figures" / "loss.svg").read_text()
    assert len(re.findall(r"^`{3,}(?:text)?$", text, re.M)) % 2 == 0


# ---- F52: what is installed

GOOD = {"lightning": "2.6.6", "torch": "2.13.0", "safetensors": "0.8.0"}


@pytest.fixture(scope="module")
def doctor() -> dict[str, Any]:
    return runpy.run_path(str(REPO / "scripts" / "doctor.py"))


@pytest.mark.fault("F52")
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3", "2.5.0", "2.6.5"])
def test_a_banned_version_is_found(doctor: dict[str, Any], version: str) -> None:
    check: Callable[[dict[str, str]], list[str]] = doctor["banned"]
    assert check(GOOD) == []
    (line,) = check(GOOD | {"lightning": version})
    assert f"lightning {version}" in line and "pip install" in line
    assert check(GOOD | {"pytorch-lightning": version})


@pytest.mark.fault("F52")
def test_the_doctor_says_what_is_here_and_by_its_exit_code_whether_it_is_well(
    doctor: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor["main"]([]) == 0
    said = capsys.readouterr().out
    for word in (
        "python",
        "torch",
        "lightning",
        "precision",
        "attention",
        "scan",
        "experts",
        "disk",
        "wandb",
        "memory",
    ):
        assert re.search(rf"^\S* *{word}", said, re.M), word
    monkeypatch.setitem(doctor["main"].__globals__, "installed", lambda: GOOD | {"lightning": "2.6.3"})
    assert doctor["main"]([]) == 2
    assert "lightning 2.6.3" in capsys.readouterr().out


@pytest.mark.fault("F52")
def test_every_package_that_ci_installs_has_one_version_and_none_is_banned(doctor: dict[str, Any]) -> None:
    lines = [x for x in (REPO / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    pinned = dict(line.lower().split("==") for line in lines)
    assert doctor["banned"](pinned) == []
    project = (REPO / "pyproject.toml").read_text()
    named = re.findall(r'^    "([a-zA-Z0-9-]+)[><=]', project, re.M)
    assert not [n for n in named if n.lower() not in pinned and n.lower().replace("-", "_") not in pinned]


# ---- images


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_copies_what_is_there_runs_the_script_of_make_and_is_no_root(name: str) -> None:
    text = (REPO / "docker" / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    bases = [line[1] for line in lines if line[0] == "FROM"]
    assert bases and all(
        re.search(r":[\w.-]*\d+\.\d+", base) and not base.endswith("latest") for base in bases
    )
    for line in lines:
        if line[0] == "COPY":
            sources = [word for word in line[1:-1] if not word.startswith("--")]
            assert sources and all((REPO / source).exists() for source in sources), line
        assert line[0] != "ADD"
    (call,) = re.findall(r"sh scripts/setup\.sh (.+)", text)
    usage = re.search(r"# usage: setup\.sh (.+?)  ", (REPO / "scripts" / "setup.sh").read_text())
    assert usage
    least = len([word for word in usage[1].split() if not word.startswith("[")])
    assert least <= len(call.split("&&")[0].split()) <= len(usage[1].split())
    users = [line[1] for line in lines if line[0] == "USER"]
    assert users and users[-1] not in {"root", "0"}
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|SECRET|PASSWORD|API_KEY)", text, re.M)
    extras = re.findall(r"\.\[([\w,]+)\]", call)
    known = set(re.findall(r"^(\w+) = \[", (REPO / "pyproject.toml").read_text(), re.M))
    assert all(extra in known for group in extras for extra in group.split(","))


def test_what_is_no_part_of_an_image_is_left_out() -> None:
    left = (REPO / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "cache", "**/*.env"} <= set(left)
