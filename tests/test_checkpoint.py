"""A checkpoint comes back bit for bit, takes what was estimated, and is kept as long as was asked."""

import os
import shutil

import pytest
import torch
from safetensors import safe_open

from llmtrain.checkpoint import State, estimate_bytes, find, load, newest, preflight, prune, save, specs
from llmtrain.errors import ConfigError, StorageError
from tests.checkpoints import DAMAGES, FILES, a_state, assert_equal

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (7,), (3, 5), (2, 3, 4)], ids=str)
def test_every_tensor_comes_back_bit_for_bit(tmp_path, dtype, shape):
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)  # NaNs with payloads among them
    tensor = (bits[..., 0] > 127) if dtype == torch.bool else bits.view(dtype).reshape(shape)
    state = State({"model": {"x": tensor}}, {})
    assert_equal(load(save(tmp_path, 1, state)), state)


@pytest.mark.parametrize(
    "view",
    [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[1:2].expand(4, -1), lambda x: x[1], lambda x: x.flip(0)],
)
def test_views_come_back_bit_for_bit(tmp_path, view):
    base = torch.randn(4, 6)
    state = State({"model": {"base": base, "view": view(base)}}, {})
    assert_equal(load(save(tmp_path, 1, state), expect=specs(state.tensors)), state)


def test_parameters_and_values_come_back(tmp_path):
    layer = torch.nn.Linear(3, 2)
    state = State(
        {"model": dict(layer.named_parameters())},
        {"pi": 3.141592653589793, "rows": 1 << 60, "log": [[1, "é"]]},
    )
    assert_equal(load(save(tmp_path, 1, state)), state)


def test_the_file_is_standard_safetensors(tmp_path):
    state = State({"model": {str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES}}, {})
    with safe_open(save(tmp_path, 1, state) / "model.safetensors", "pt") as file:
        for name, tensor in state.tensors["model"].items():
            assert file.get_tensor(name).equal(tensor) and file.get_tensor(name).dtype == tensor.dtype


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path):
    weight = torch.randn(1000, 8)
    path = save(
        tmp_path, 1, State({"model": {"embed": weight, "head": weight.detach(), "part": weight[:500]}}, {})
    )
    assert (path / "model.safetensors").stat().st_size < weight.nbytes * 1.5 + 1000
    model = load(path).tensors["model"]
    assert model["head"] is model["embed"]
    assert model["part"].untyped_storage().data_ptr() != model["embed"].untyped_storage().data_ptr()


def test_views_of_one_memory_in_another_order_are_no_tie(tmp_path):
    square = torch.randn(4, 4)
    model = {"w": square, "w.T": square.T, "bits": square.view(torch.int32), "row": square[0]}
    assert_equal(load(save(tmp_path, 1, State({"model": model}, {}))), State({"model": model}, {}))


def test_equal_states_make_equal_bytes(tmp_path):
    a, b = save(tmp_path / "a", 7, a_state()), save(tmp_path / "b", 7, a_state())
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("values", [{"x": float("nan")}, {"x": (1, 2)}, {"x": {1: 2}}], ids=str)
def test_values_that_json_would_change_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 1, State({}, values))
    assert newest(tmp_path) is None


def test_a_step_that_is_there_already_is_left(tmp_path):
    first = save(tmp_path, 5, a_state(1))
    assert save(tmp_path, 5, a_state(2)) == first
    assert_equal(load(first), a_state(1))


def test_a_step_that_is_there_damaged_is_written_anew(tmp_path):
    os.truncate(save(tmp_path, 5, a_state(1)) / "state.json", 1)
    assert_equal(load(save(tmp_path, 5, a_state(2))), a_state(2))
    assert (tmp_path / "checkpoints/step-00000005.corrupt").is_dir()


@pytest.mark.fault("F5")
def test_what_is_estimated_is_what_is_needed(tmp_path):
    state = State(
        {"model": {f"layers.{i}.w": torch.zeros(100, 100) for i in range(20)}}, {"x": list(range(100))}
    )
    meta = State(
        {"model": {name: tensor.to("meta") for name, tensor in state.tensors["model"].items()}}, state.values
    )
    needed = sum(path.stat().st_size for path in save(tmp_path, 1, state).iterdir())
    assert needed <= estimate_bytes(state) == estimate_bytes(meta) <= 1.05 * needed


@pytest.mark.fault("F5")
def test_a_start_is_refused_where_two_checkpoints_do_not_fit(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    preflight(tmp_path / "not" / "there", free // 4)
    with pytest.raises(StorageError, match="are free, and checkpoints need"):
        preflight(tmp_path / "not" / "there", free)


def test_pruning_keeps_the_last_and_the_milestones(tmp_path):
    for step in range(0, 100, 10):
        save(tmp_path, step, a_state())
    prune(tmp_path, keep_last=2, keep_every=30)
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [0, 30, 60, 80, 90]
    prune(tmp_path, keep_last=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000090"]


@pytest.mark.fault("F8")
def test_nothing_is_deleted_while_the_newest_is_damaged(tmp_path):
    for step in (1, 2, 3):
        last = save(tmp_path, step, a_state(step))
    DAMAGES["one bit flipped"](last / "model.safetensors")
    prune(tmp_path, keep_last=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert_equal(load(find(tmp_path)), a_state(2))


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_last=0"):
        prune(tmp_path, keep_last=0)
