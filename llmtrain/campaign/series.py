"""One cell of the campaign: a run that is killed again and again, compared with the one that nothing happened to."""

import hashlib
import json
import os
import random
import shutil
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmtrain import faults
from llmtrain.campaign.grid import BATCH_ROWS, STEPS, words
from llmtrain.campaign.starts import End, start
from llmtrain.checkpoint import newest

IN_WRITES, AT_RANDOM = "inside a write", "at a random moment"


@dataclass
class Series:
    """What came of one cell."""

    cell: str
    kills: dict[str, int] = field(default_factory=lambda: {IN_WRITES: 0, AT_RANDOM: 0})
    fresh: int = 0  # of the kills, those of a fresh interpreter
    starts: int = 0
    ends: int = 0  # runs that came to their end, each compared with the one that nothing happened to
    torn: int = 0  # starts that found a checkpoint damaged, which no kill may leave
    failed: list[str] = field(default_factory=list)  # starts that ended otherwise than by their kill, or well
    differs: list[str] = field(default_factory=list)  # what is not as in the run that nothing happened to
    seconds: float = 0.0


def series(home: Path, cell: str, *, kills: int, in_writes: int, fresh: int, seed: int) -> Series:
    """``kills`` kills of the run of ``cell``, ``in_writes`` of them inside a checkpoint's writing, then its end."""
    found = home / "series" / f"{cell}.json"
    if found.exists():
        return Series(**json.loads(found.read_text(encoding="utf-8")))
    rng = random.Random(f"{seed} {cell}")
    whole, killed = f"{cell}-whole", f"{cell}-killed"
    for name in (whole, killed):
        _clear(home, name)
    reference = _start(home, cell, whole)
    result = Series(cell)
    if reference.code:
        raise RuntimeError(f"{cell} fails without a kill: {reference.said[-2000:]}")
    plan = [IN_WRITES] * in_writes + [AT_RANDOM] * (kills - in_writes)
    rng.shuffle(plan)
    of_fresh = set(rng.sample(range(kills), fresh))
    for n, kind in enumerate(plan):
        _kill(home, result, kind, rng, fresh=n in of_fresh, usual=reference.seconds)
    _count(result, _start(home, cell, killed), expected={0})
    _compare(home, result)
    found.parent.mkdir(exist_ok=True)
    partial = found.with_suffix(".tmp")
    partial.write_text(json.dumps(asdict(result), indent=2), encoding="utf-8")
    partial.rename(found)
    return result


def _kill(home: Path, result: Series, kind: str, rng: random.Random, *, fresh: bool, usual: float) -> None:
    """One kill of the kind, in as many starts as it takes: where one comes to its end, another run begins."""
    name = f"{result.cell}-killed"
    while True:
        (home / "runs" / name / faults.MARKER).unlink(missing_ok=True)
        if kind == IN_WRITES:
            end = _start(home, result.cell, name, fault=f"kill@write={rng.randint(1, 60)}", fresh=fresh)
        else:
            # a fresh interpreter needs longer: its imports are moments too
            limit = 3 * usual + 4 if fresh else 0.95 * usual
            end = _start(home, result.cell, name, kill_after=rng.uniform(0.0, limit), fresh=fresh)
        _count(result, end, expected={0, -signal.SIGKILL})
        if end.code == -signal.SIGKILL:
            result.kills[kind] += 1
            result.fresh += fresh
            return
        _compare(home, result)
        _clear(home, name)


def _start(home: Path, cell: str, name: str, **how: object) -> End:
    rows, log = home / f"{name}.rows", home / f"{name}.log"
    with rows.open("a") as file:
        file.write("start\n")
    return start(words(home, cell, name), rows=rows, log=log, **how)  # type: ignore[arg-type]


def _count(result: Series, end: End, *, expected: set[int]) -> None:
    result.starts += 1
    result.seconds += end.seconds
    result.torn += "corrupt" in end.said or "is damaged" in end.said
    if end.code not in expected:
        result.failed.append(f"exit code {end.code}: {end.said[-500:]}")


def _compare(home: Path, result: Series) -> None:
    result.ends += 1
    result.differs += differences(home, result.cell)


def differences(home: Path, cell: str) -> list[str]:
    """Of losses in hexadecimal, the hash of the last weights and the rows that were trained on, what is not equal."""
    wrong = []
    for what, of in {"losses": _losses, "weights": _weights, "rows": rows_of}.items():
        whole, killed = of(home, f"{cell}-whole"), of(home, f"{cell}-killed")
        if whole != killed or not whole:
            wrong.append(f"{what}: {_short(whole)} and {_short(killed)}")
    return wrong


def _clear(home: Path, name: str) -> None:
    shutil.rmtree(home / "runs" / name, ignore_errors=True)
    (home / f"{name}.rows").unlink(missing_ok=True)


def _losses(home: Path, name: str) -> list[str]:
    rows = [json.loads(line) for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [
        f"{row['step']} {key} {float(row[key]).hex()}"
        for row in rows
        for key in sorted(row)
        if _is_result(key)
    ]


def _is_result(key: str) -> bool:
    return key in {"loss", "lr", "grad_norm"} or key.startswith("validation/")


def _weights(home: Path, name: str) -> str:
    path = newest(home / "runs" / name)
    if path is None or int(path.name[5:]) != STEPS:
        return ""
    data = b"".join(file.read_bytes() for file in sorted(path.glob("*.safetensors")))
    return hashlib.sha256(data).hexdigest()


def rows_of(home: Path, name: str) -> list[str]:
    """The rows that the last weights were trained on: of each start those before where the next one began."""
    effective: list[str] = []
    for part in (home / f"{name}.rows").read_text().split("start\n"):
        lines = part.splitlines()
        if lines:
            first = int(lines[0])
            effective = [*(line for line in effective if int(line) < first), *lines]
    return effective if len(effective) == STEPS * BATCH_ROWS else [*effective, f"{len(effective)} rows"]


def _short(value: object) -> str:
    text = str(value)
    return (
        text
        if len(text) < 80
        else f"{text[:60]}... ({os.fsdecode(hashlib.sha256(text.encode()).hexdigest()[:8])})"
    )
