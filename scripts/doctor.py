"""Say what is here and what a run would choose: ``python scripts/doctor.py``; exit code 2 where something is wrong.

Versions (and those that must not be used), hardware, precision, kernels, memory, disk, Weights & Biases.
"""

import importlib.util
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from llmtrain.cli import guarded

# 2.6.2 and 2.6.3 were published by somebody else and steal credentials; older ones cannot do what is needed
BANNED = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
LEAST = {"lightning": "2.6.6", "pytorch-lightning": "2.6.6", "torch": "2.13", "safetensors": "0.6"}
FREE = 5e9  # bytes of disk: fewer are soon used up
KERNELS = {"flash_attn": "attention on GPUs", "mamba_ssm": "state spaces on GPUs"}


def main(words: list[str] | None = None) -> int:
    given = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return 0
    return guarded(look)


def look() -> int:
    """Print a line for each finding; 2 where one of them is a fault, else 0."""
    wrong = banned(installed())
    for name, said in [*software(), *hardware(), *choices(), *places()]:
        print(f"{name:<15}{said}")
    for line in wrong:
        print(f"wrong: {line}")
    return 2 if wrong else 0


def installed() -> dict[str, str]:
    """The version of every package, by its name in lower case."""
    found = ((d.metadata["Name"], d.version) for d in metadata.distributions())
    return {name.lower(): version for name, version in found if name}


def banned(versions: dict[str, str]) -> list[str]:
    """What of ``versions`` must not be used, and the way out, a line each."""
    from packaging.version import Version

    found = []
    for name, version in versions.items():
        least = LEAST.get(name)
        if version in BANNED.get(name, ()):
            found.append(
                f"{name} {version} is malicious: revoke the keys that this machine knows, then "
                f"pip install '{name}=={least}'"
            )
        elif least and Version(version) < Version(least):
            found.append(f"{name} {version} is older than {least}: pip install '{name}>={least}'")
    return found


def software() -> list[tuple[str, str]]:
    from llmtrain.run_folder import git_commit, versions

    rows = [(name, version) for name, version in versions().items() if name != "llmtrain"]
    rows += [
        (name, "installed" if importlib.util.find_spec(name) else f"not installed ({use})")
        for name, use in KERNELS.items()
    ]
    return [("llmtrain", f"{versions()['llmtrain']}, commit {git_commit() or 'not known'}"), *rows]


def hardware() -> list[tuple[str, str]]:
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shown = [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus]
    return [
        (
            "cpu",
            f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        ),
        ("memory", f"{memory / 1e9:.1f} GB"),
        *(("gpu", gpu) for gpu in shown or ["none"]),
    ]


def choices() -> list[tuple[str, str]]:
    """What a run with ``auto`` would use on this machine."""
    import logging

    import torch

    from llmtrain.ops import backend
    from llmtrain.trainer import DTYPES, Trainer

    logging.getLogger("llmtrain.ops.backend").setLevel(logging.WARNING)  # it says the same in its own words
    precision = Trainer().chosen_precision()
    x = torch.empty(0, dtype=DTYPES[precision], device="cuda" if Trainer().on_gpu else "cpu")
    return [
        ("precision", precision),
        *((op, backend.choose(op, x)) for op in ("attention", "scan", "experts")),
    ]


def places() -> list[tuple[str, str]]:
    from llmtrain.callbacks.loggers.wandb import logged_in

    free = shutil.disk_usage(Path.cwd()).free
    few = "" if free > FREE else ": few for checkpoints, put runs= elsewhere"
    shared = shutil.disk_usage("/dev/shm").free / 1e9 if Path("/dev/shm").is_dir() else 0.0
    return [
        ("disk", f"{free / 1e9:.1f} GB free here{few}"),
        ("shared", f"{shared:.1f} GB free in /dev/shm, for data.loader_workers"),
        (
            "wandb",
            "logged in: logger=wandb logs online" if logged_in() else "no login: logger=wandb logs offline",
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
