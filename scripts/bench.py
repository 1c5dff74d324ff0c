"""Measure a config's training step: ``python scripts/bench.py experiment=clm_dense key=value ...``.

Takes the overrides of train.py, and of its own: repeats=N (steps counted, 20), json=FILE (the figures as data), and
against=transformers (its models of the same kind and shape, timed in turn, in a process of their own).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.cli import guarded

if TYPE_CHECKING:
    from llmtrain.benchmark import Benchmark

OWN = ("repeats", "json", "against")


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    return guarded(lambda: measure(sys.argv[1:]))


def measure(words: list[str]) -> None:
    from llmtrain.benchmark import bench
    from llmtrain.compose import run_from
    from llmtrain.data.prepare import prepare
    from llmtrain.errors import ConfigError
    from llmtrain.setup import set_up

    own = dict(word.split("=", 1) for word in words if word.partition("=")[0] in OWN)
    overrides = [word for word in words if word.partition("=")[0] not in OWN]
    repeats = own.get("repeats", "20")
    if not repeats.isdecimal() or repeats == "0":
        raise ConfigError(f"repeats={repeats}: give a whole number of steps, at least 1")
    if own.get("against", "transformers") != "transformers":
        raise ConfigError(f"against={own['against']}: there is only against=transformers")
    file = Path(own["json"]) if "json" in own else None
    if file and not file.parent.is_dir():  # before the measuring, not after
        raise ConfigError(f"json={file}: there is no folder {file.parent}")
    run = run_from(overrides)
    setup = set_up(run, prepare(run.data, run.tokenizer))
    found = bench(setup, steps=int(repeats), against="against" in own)
    print(table(found))
    if file:
        file.write_text(json.dumps(found.plain(), indent=2) + "\n", encoding="utf-8")


def table(found: "Benchmark") -> str:
    step = sum(found.seconds.values())
    lines = [f"{found.n:,} parameters, {found.flops_per_step:.3g} FLOPs a step, {found.precision}", ""]
    lines += [f"{phase:>12} {1e3 * s:10.2f} ms {s / step:7.1%}" for phase, s in found.seconds.items()]
    lines += [
        f"{'step':>12} {1e3 * step:10.2f} ms",
        "",
        f"{found.tokens_per_second:,.0f} tokens/s, {found.mfu:.3f} of the matrix product's "
        f"{found.matmul_flops_per_second / 1e9:.0f} GFLOP/s, peak memory "
        f"{found.peak_memory_bytes / 1e9:.2f} GB",
        f"loader alone: {found.rows_per_second:,.0f} rows/s",
    ]
    for name, speed in found.baselines.items():
        ratio = found.tokens_per_second / speed
        lines.append(f"transformers' {name}: {speed:,.0f} tokens/s; ours is {ratio:.2f} times as fast")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
