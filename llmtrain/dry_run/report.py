"""What a run would take, as data for scripts and as a table for people."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmtrain.accounting import Size
from llmtrain.dry_run.live import Parts
from llmtrain.errors import StorageError

SCHEMA = "llmtrain dry run 1"
ROOM = 0.9  # the share of a device's memory that tensors can fill: driver, NCCL and gaps between blocks take the rest
_NAMES = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimiser": "optimiser state",
    "gathered": "gathered from ranks",
    "batch": "batch",
    "activations": "activations",
}
Fit = Literal["yes", "barely", "no"]


class Traffic(NamedTuple):
    """All messages a step of one collective along one axis."""

    collective: str
    axis: str
    times: int
    bytes: int  # reduced, or there in the end
    sent_bytes: int  # by one rank, where a ring carries it


@dataclass(frozen=True, kw_only=True)
class Report:
    experiment: str
    n_layers: int
    d_model: int
    vocab_size: int
    n: Size
    # on what
    device: str
    devices: int
    strategy: str
    tensor: int  # ranks that share matrices
    precision: str
    activation_checkpointing: str
    # in what portions
    seq_len: int
    batch_rows: int
    micro_rows: int  # of a rank at a time
    micro_batches: int  # a step
    # memory of a rank, bytes
    memory: dict[str, Parts]  # at the peak of forward, backward, optimiser
    device_memory: int
    # messages of a step
    traffic: Sequence[Traffic]
    # work and time
    step_flops_model: int
    step_flops_counter: int  # torch's convention, MFU's
    step_tokens: int  # raw
    steps: int | None  # none: known once the corpus is prepared
    length: str  # as it was given
    mfu: float  # assumed
    peak_flops: float  # of all devices together

    @property
    def peak(self) -> tuple[str, Parts]:
        """The phase of the highest peak, and what it is made of."""
        return max(self.memory.items(), key=lambda item: item[1].total)

    @property
    def fits(self) -> Fit:
        share = self.peak[1].total / self.device_memory
        return "yes" if share <= ROOM else "barely" if share <= 1 else "no"

    @property
    def step_seconds(self) -> float:
        return self.step_flops_counter / (self.mfu * self.peak_flops)

    @property
    def days(self) -> float | None:
        return None if self.steps is None else self.steps * self.step_seconds / 86400

    def plain(self) -> dict[str, Any]:
        """JSON of ``SCHEMA``: the fields, and what follows from them."""
        phase, parts = self.peak
        steps = self.steps
        return {
            "schema": SCHEMA,
            **asdict(self),
            "n": self.n._asdict(),
            "memory": {name: {**p._asdict(), "total": p.total} for name, p in self.memory.items()},
            "traffic": [one._asdict() for one in self.traffic],
            "peak_phase": phase,
            "peak_bytes": parts.total,
            "fits": self.fits,
            "run_flops_model": None if steps is None else steps * self.step_flops_model,
            "run_flops_counter": None if steps is None else steps * self.step_flops_counter,
            "run_tokens": None if steps is None else steps * self.step_tokens,
            "step_seconds": self.step_seconds,
            "tokens_per_second": self.step_tokens / self.step_seconds,
            "days": self.days,
        }

    def write(self, path: Path) -> None:
        import json

        try:
            path.write_text(json.dumps(self.plain(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"estimate.json={path}: {error.strerror}; give a file in a folder that is there"
            ) from None

    def table(self) -> str:
        return "".join(f"{line}\n".replace(" \n", "\n") for line in self._lines())

    def _lines(self) -> Iterable[str]:
        n = self.n
        yield (
            f"{self.experiment}: {self.n_layers} layers of width {self.d_model}, {n.total:,} parameters "
            f"({n.non_embedding:,} outside the embedding, {n.active:,} active), vocabulary {self.vocab_size:,}"
        )
        times = f" x {self.micro_batches} times" if self.micro_batches > 1 else ""
        shape = self.strategy + (f" (tensor {self.tensor})" if self.tensor > 1 else "")
        recomputed = "" if self.activation_checkpointing == "none" else ", activations of blocks recomputed"
        yield (
            f"{self.devices} x {self.device}, {shape}, {self.precision}{recomputed}; a step of {self.batch_rows:,} "
            f"rows x {self.seq_len:,} positions, {self.micro_rows:,} rows of a device{times}"
        )
        yield ""
        yield from self._memory()
        if self.traffic:
            yield ""
            yield f"{'messages a step':<24}{'axis':>12}{'times':>12}{'a rank sends':>16}"
            for one in self.traffic:
                yield f"  {one.collective:<22}{one.axis:>12}{one.times:>12,}{_bytes(one.sent_bytes):>16}"
        yield ""
        yield from self._work()

    def _memory(self) -> Iterable[str]:
        phase, peak = self.peak
        yield f"{'memory of a rank':<24}" + "".join(f"{name:>12}" for name in self.memory)
        for field, name in _NAMES.items():
            row = [getattr(parts, field) for parts in self.memory.values()]
            if any(row):
                yield f"  {name:<22}" + "".join(f"{_bytes(n):>12}" for n in row)
        yield f"  {'together':<22}" + "".join(f"{_bytes(p.total):>12}" for p in self.memory.values())
        verdict = {
            "yes": "it fits",
            "barely": "it barely fits: driver, NCCL and gaps between blocks take some too",
            "no": "it does not fit",
        }[self.fits]
        way_out = "" if self.fits == "yes" else f"; try {' or '.join(self._knobs())}"
        share = peak.total / self.device_memory
        yield (
            f"  peak {_bytes(peak.total)} ({phase}), {share:.1%} of {_bytes(self.device_memory)}: {verdict}{way_out}"
        )

    def _knobs(self) -> list[str]:
        """What would save most, first."""
        parts = self.peak[1]
        kept = parts.parameters + parts.gradients + parts.optimiser
        less_kept = ["a smaller size"] if self.strategy in {"fsdp", "tp"} else ["trainer=fsdp"]
        less_passing = ["trainer.activation_checkpointing=block"] * (self.activation_checkpointing == "none")
        less_passing += [f"micro_rows={max(1, self.micro_rows // 2)}"] * (self.micro_rows > 1)
        return less_kept + less_passing if kept > parts.activations else less_passing + less_kept

    def _work(self) -> Iterable[str]:
        seconds = self.step_seconds
        yield "work"
        yield (
            f"  {'a step':<22}{self.step_tokens:,} tokens, {self.step_flops_model:.3g} model FLOPs "
            f"({self.step_flops_counter:.3g} as torch counts)"
        )
        if self.steps is None:
            yield f"  {'the run':<22}{self.length}: its steps are known once the corpus is prepared"
        else:
            yield (
                f"  {'the run':<22}{self.length}: {self.steps:,} steps, {self.steps * self.step_tokens:,} tokens, "
                f"{self.steps * self.step_flops_model:.3g} model FLOPs"
            )
        days = "" if self.days is None else f", the run {_time(self.days)}"
        yield (
            f"  {f'at {self.mfu:.0%} MFU':<22}{self.step_tokens / seconds:,.0f} tokens/s, {seconds:.3g} s a step{days} "
            f"(of {self.peak_flops:.3g} FLOP/s)"
        )


def traffic_of(messages: Iterable[Any], axes: dict[str, str]) -> list[Traffic]:
    """Messages summed by collective and axis; ``axes`` names groups of ranks."""

    def kind(message: Any) -> tuple[str, str]:
        return message.collective, axes.get(message.group, "all")

    grouped = groupby(sorted(messages, key=kind), key=kind)
    sums = ((collective, axis, list(some)) for (collective, axis), some in grouped)
    return [
        Traffic(collective, axis, len(some), sum(m.bytes for m in some), round(sum(m.sent for m in some)))
        for collective, axis, some in sums
    ]


def _bytes(n: int) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n / 1024:.2f} KiB" if n else "-"


def _time(days: float) -> str:
    hours = 24 * days
    if days >= 2:
        return f"{days:.1f} days"
    return f"{hours:.1f} hours" if hours >= 2 else f"{3600 * hours:,.0f} s"
