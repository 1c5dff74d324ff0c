"""Nothing that is read is executed, be it a pickle, or code beside a dataset."""

import ast
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtrain import cli
from llmtrain.data.digests import Digests
from llmtrain.data.sources.base import Tally
from llmtrain.data.sources.hub import Hub
from llmtrain.errors import ConfigError, DataError, UserError
from llmtrain.export.pretrained import load_pretrained
from llmtrain.loading import load_run
from llmtrain.pretrain import train
from runs import REPO, overrides, tiny, write_text

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
