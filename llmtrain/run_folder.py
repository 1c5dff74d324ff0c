"""The folder of a run: what is written before the first step, and whether a start may go on in it."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from llmtrain.config import differences, to_plain
from llmtrain.data.prepare import FILES, Inventories
from llmtrain.errors import ConfigError, DataError
from llmtrain.record import RunRecord
from llmtrain.redaction import redacted
from llmtrain.run import LENGTHS, Run
from llmtrain.typos import did_you_mean, nearest_keys

log = logging.getLogger(__name__)

CONFIG = "config.yaml"  # a folder is a run iff it holds it
CHANGES = "changes.jsonl"
TOKENIZER = "tokenizer"  # the folder in a run's folder: a copy, so that a run does not need the cache

Change = tuple[str, Any, Any]  # dotted key, our value, the saved one

PACKAGES = (
    "llmtrain",
    "torch",
    "lightning",
    "hydra-core",
    "datasets",
    "sentencepiece",
    "tokenizers",
    "numpy",
    "safetensors",
    "wandb",
)


def enter(run: Run) -> RunRecord | None:
    """Whether ``run`` may go on in its folder; the record, if it is finished. Nothing is written.

    Raises ConfigError where the folder holds another run, showing each difference, and where ``resume=never`` finds
    any.
    """
    folder = run.folder
    record = folder / "record.json"
    if not (folder / CONFIG).exists():
        return None
    if run.resume == "never":
        raise ConfigError(
            f"{folder} already holds a run and resume=never: give another name, or resume=auto to go on in it"
        )
    saved = read_config(folder)
    changed, allowed = changes(run, saved)
    for key, now, before in allowed:
        log.warning("%s: %s before, %s now, as allow_changes allows", key, _short(before), _short(now))
    if record.exists():
        changed += allowed  # there is nothing to go on with
        changed += [
            (key, getattr(run, key), saved.get(key)) for key in LENGTHS if getattr(run, key) != saved.get(key)
        ]
    if changed:
        shown = "; ".join(f"{key}: {_short(b)} there, {_short(a)} now" for key, a, b in changed[:8])
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        what = "a finished run" if record.exists() else "a run"
        raise ConfigError(
            f"{folder} holds {what} with another config: {shown}{more}. Give another name (name=...), start from its "
            f"weights with init_from={folder.name}, or allow_changes=[{','.join(key for key, _, _ in changed[:8])}]"
        )
    return RunRecord.read(record) if record.exists() else None


def changes(run: Run, saved: dict[str, Any]) -> tuple[list[Change], list[Change]]:
    """What of ``run`` is not as it was started, where it must be and where ``allow_changes`` lets it be otherwise.

    Raises ConfigError for a key in ``allow_changes`` that no run has.
    """
    identity: dict[str, Any] = redacted(run.identity)  # what was saved has no secrets, so none are compared
    known = list(_keys(identity))
    for key in run.allow_changes:
        if key not in known:
            raise ConfigError(
                f"allow_changes: unknown key {key}: {did_you_mean(nearest_keys(key, known), identity)}"
            )
    refused, allowed = list[Change](), list[Change]()
    for change in differences(identity, _cut(redacted(saved), identity)):
        ours = any(f"{change[0]}.".startswith(f"{key}.") for key in run.allow_changes)
        (allowed if ours else refused).append(change)
    return refused, allowed


def finished(run: Run) -> bool:
    return (run.folder / "record.json").exists()


def begin(run: Run, overrides: list[str], prepared: Path, *, step: int) -> None:
    """Write what a start leaves before its first step: from here on the folder is this run's.

    A later start writes its own, since what is free may have changed; what was changed although it is not free is added
    to ``changes.jsonl``, with the ``step`` from which it holds. ``prepared`` is the folder of the corpus, whose
    tokenizer is kept, and what its text was read from.
    """
    folder = run.folder
    if (folder / CONFIG).exists():
        _, allowed = changes(run, read_config(folder))
        if allowed:
            with (folder / CHANGES).open("a", encoding="utf-8") as file:
                for key, now, before in allowed:
                    file.write(json.dumps({"step": step, "key": key, "before": before, "now": now}) + "\n")
    _keep_tokenizer(run, prepared)
    write_text(folder / FILES, (prepared / FILES).read_text(encoding="utf-8"))
    write_text(folder / "environment.json", json.dumps(redacted(environment(run)), indent=2) + "\n")
    write_text(folder / "overrides.yaml", yaml.safe_dump(redacted(overrides), allow_unicode=True))
    write_text(folder / CONFIG, dump(redacted(to_plain(run))))  # last


def _keep_tokenizer(run: Run, prepared: Path) -> None:
    kept = run.folder / TOKENIZER
    if not kept.exists():
        partial = kept.with_name(TOKENIZER + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(prepared / "tokenizer", partial)
        partial.rename(kept)


def changes_of_machine(run: Run) -> list[str]:
    """What differs, between this start and the one before, that bits may depend on; in words."""
    path = run.folder / "environment.json"
    if not path.exists():
        return []
    before, now = json.loads(path.read_text(encoding="utf-8")), redacted(environment(run))
    kept = ("versions", "precision", "compile", "host")
    pairs = [differences({k: now[k]}, {k: before.get(k)}) for k in kept]
    return [
        f"{key}: {_short(theirs)} before, {_short(ours)} now" for pair in pairs for key, ours, theirs in pair
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """The config that the run in ``folder`` was started with, as plain data."""
    path = folder / CONFIG
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        near = sorted(p.parent.name for p in folder.parent.glob(f"*/{CONFIG}"))
        there = f"there are {', '.join(near[:8])}" if near else f"{folder.parent} holds none"
        raise ConfigError(f"{folder} is no run (it has no {CONFIG}): {there}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not the config of a run: it holds no keys")
    return value


def read_files(folder: Path) -> Inventories:
    """What the text of the run in ``folder`` was read from; nothing, where that was not kept."""
    path = folder / FILES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def environment(run: Run) -> dict[str, Any]:
    """Versions, commit, hardware, command line, and what was chosen for this machine."""
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_commit(),
        "versions": versions(),
        "precision": run.trainer.chosen_precision(),
        "compile": run.trainer.compile,
        "host": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {"python": platform.python_version()} | found


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with ``+changes`` where files differ from it."""
    root = Path(__file__).parents[1]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def dump(plain: dict[str, Any]) -> str:
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of plain data, of groups too."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in pairs:
        if name != "_target_":
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def _cut(saved: Any, like: Any) -> Any:
    """Of ``saved``, the keys that ``like`` has: a saved config also holds what may differ."""
    if isinstance(saved, dict) and isinstance(like, dict):
        return {key: _cut(value, like[key]) for key, value in saved.items() if key in like}
    if isinstance(saved, list) and isinstance(like, list) and len(saved) == len(like):
        return [_cut(a, b) for a, b in zip(saved, like, strict=True)]
    return saved


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
