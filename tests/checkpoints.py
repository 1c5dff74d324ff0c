"""States, damages and crashes that the tests of checkpoints share."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from llmtrain.checkpoint import State

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"]
DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "truncated to nothing": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "one bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "one byte appended": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a link": lambda path: (
        path.rename(path.parents[2] / "elsewhere") and path.symlink_to(path.parents[2] / "elsewhere")
    ),
}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def a_state(seed: int = 0) -> State:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=draw)
    return State(
        {
            "model": {"embed": weight, "norm": torch.randn(3, generator=draw)},
            "optimizer": {
                "embed.moment": torch.randn(5, 3, generator=draw),
                "step": torch.tensor(float(seed)),
            },
            "rng": {"torch": draw.get_state()},
        },
        {"step": seed, "loss": 0.1 + seed, "names": ["a", None, True]},
    )


def assert_equal(a: State, b: State) -> None:
    assert a.values == b.values
    assert {group: sorted(named) for group, named in a.tensors.items()} == {
        group: sorted(named) for group, named in b.tensors.items()
    }
    for group, named in a.tensors.items():
        for name, tensor in named.items():
            other = b.tensors[group][name]
            assert tensor.dtype == other.dtype and tensor.shape == other.shape
            assert (
                tensor.contiguous()
                .reshape(-1)
                .view(torch.uint8)
                .equal(other.contiguous().reshape(-1).view(torch.uint8))
            )


def in_a_child(act: Callable[[], object]) -> tuple[int, str]:
    """The exit code of a forked process that calls ``act``, and what ``act`` returned or raised."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send_bytes(str(act()).encode())
        except Exception as error:
            sender.send_bytes(f"{type(error).__name__}: {error}".encode())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    sender.close()
    try:
        said = receiver.recv_bytes().decode()
    except EOFError:
        said = ""
    process.join()
    assert process.exitcode is not None
    return process.exitcode, said


def die_at(n: int) -> Callable[[str], None]:
    """Kills this process at the ``n``-th call."""
    calls = iter(range(n))

    def on_write(point: str) -> None:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_write
