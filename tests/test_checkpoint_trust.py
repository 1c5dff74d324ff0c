"""A checkpoint is believed only as far as it is what was expected, and runs nothing."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash

from llmtrain.checkpoint import State, find, load, newest, save, specs
from llmtrain.errors import ConfigError, StorageError
from tests.checkpoints import FILES, a_state

pytestmark = pytest.mark.fault("F45", "F46", "F50")


def reseal(path: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest of a checkpoint as one could who can compute its hash."""
    manifest = json.loads((path / "manifest.json").read_text())["manifest"]
    change(manifest)
    body = json.dumps(manifest)
    digest = xxhash.xxh3_128_hexdigest(body.encode())
    (path / "manifest.json").write_text(f'{{"hash":"{digest}","manifest":{body}}}\n')


def replace_file(path: Path, name: str, data: bytes) -> None:
    (path / name).write_bytes(data)
    stored = {"size": len(data), "hash": xxhash.xxh3_128_hexdigest(data)}
    reseal(path, lambda manifest: manifest["contents"]["files"].update({name: stored}))


@pytest.mark.parametrize(
    ("entry", "tail"),
    [
        ({"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]}, b"\0" * 16),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 62]}, b"\0" * 16),
        ({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}, b"\0" * 16),
        ({"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}, b"\0" * 16),
        ({"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}, b"\0" * 16),
        ({"dtype": "X", "shape": [4], "data_offsets": [0, 16]}, b"\0" * 16),
        ([[[[]]]], b""),
    ],
    ids=str,
)
def test_a_header_that_is_not_the_one_of_its_manifest_is_refused(tmp_path, entry, tail):
    path = save(tmp_path, 1, State({"model": {"w": torch.ones(4)}}, {}))
    text = json.dumps({"w": entry}).encode()
    replace_file(path, "model.safetensors", len(text).to_bytes(8, "little") + text + tail)
    with pytest.raises(StorageError, match=r"model\.safetensors does not hold the tensors"):
        load(path)


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [1 << 60]},
        {"dtype": "F32", "shape": [-2, -2]},
        {"dtype": "F32", "shape": [10**30, 0]},
        {"dtype": "object", "shape": [4]},
        {"dtype": "F32", "shape": "4"},
        None,
    ],
    ids=str,
)
def test_a_manifest_with_impossible_tensors_is_refused_before_they_are_made(tmp_path, tensor):
    state = State({"model": {"w": torch.ones(4)}}, {})
    path = save(tmp_path, 1, state)
    part = {"file": "model.safetensors", "rank": None, "tensors": {"w": tensor}, "ties": {}}
    reseal(path, lambda manifest: manifest["contents"]["groups"].update(model=[part]))
    for expect in (None, specs(state.tensors)):
        with pytest.raises((StorageError, ConfigError)):
            load(path, expect=expect)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/b", "", ".", "..", "a\\b", "a\0b"], ids=repr
)
def test_a_file_outside_of_the_checkpoint_is_refused(tmp_path, name):
    path = save(tmp_path, 1, State({"model": {"w": torch.ones(4)}}, {}))
    (tmp_path / "checkpoints" / "secret").write_bytes((path / "model.safetensors").read_bytes())

    def point(manifest: dict) -> None:
        contents = manifest["contents"]
        contents["files"][name] = contents["files"].pop("model.safetensors")
        contents["groups"]["model"][0]["file"] = name

    reseal(path, point)
    with pytest.raises(StorageError, match="no plain file name"):
        load(path)


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b"null", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 10_000 + b"}"]
)
def test_values_that_are_no_object_are_refused(tmp_path, text):
    path = save(tmp_path, 1, a_state())
    replace_file(path, "state.json", text)
    with pytest.raises(StorageError, match=r"state\.json"):
        load(path)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_in_place_of_any_file_is_not_executed(tmp_path, file):
    path = save(tmp_path, 1, a_state())
    payload = pickle.dumps(Payload(tmp_path / "executed"))
    if file == "manifest.json":
        (path / file).write_bytes(payload)
    else:
        replace_file(path, file, payload)
    with pytest.raises(StorageError):
        load(path)
    assert not (tmp_path / "executed").exists()


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    path = save(tmp_path, 1, a_state())
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")
    assert newest(tmp_path) is None


def test_a_format_of_another_version_is_refused_and_not_set_aside(tmp_path):
    path = save(tmp_path, 1, a_state())
    reseal(path, lambda manifest: manifest.update(version=3))
    with pytest.raises(
        StorageError, match="llmtrain-checkpoint 3, and this llmtrain reads llmtrain-checkpoint up to 2"
    ):
        find(tmp_path)
    assert path.is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.pop("norm"),
            r"model norm is \(3,\) float32 in the checkpoint and not there in this run",
        ),
        (
            lambda model: model.update(bias=torch.ones(2)),
            r"model bias is not there in the checkpoint and \(2,\) float32",
        ),
        (
            lambda model: model.update(norm=torch.ones(4)),
            r"model norm is \(3,\) float32 .* and \(4,\) float32",
        ),
        (
            lambda model: model.update(norm=torch.ones(3).half()),
            r"model norm is \(3,\) float32 .* and \(3,\) float16",
        ),
    ],
)
def test_the_first_difference_from_what_is_expected_is_named(tmp_path, change, message):
    path = save(tmp_path, 1, a_state())
    other = a_state()
    change(other.tensors["model"])
    with pytest.raises(ConfigError, match=message):
        load(path, expect=specs(other.tensors))


def test_only_the_groups_that_are_expected_are_read(tmp_path):
    path = save(tmp_path, 1, a_state())
    (path / "optimizer.safetensors").unlink()
    state = load(path, expect=specs({"model": a_state().tensors["model"]}))
    assert list(state.tensors) == ["model"]
    with pytest.raises(ConfigError, match="has no ema"):
        load(path, expect={"ema": {}})
