"""What was found, as data, as a table and as figures."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.config import to_plain
from llmtrain.coordinates.check import Axis, Question
from llmtrain.coordinates.slopes import Curve, Kind, kinds
from llmtrain.coordinates.transfer import Basin, octaves
from llmtrain.scaling.figures.canvas import SERIES, STYLE, Drawn, budget_colours, new, save
from llmtrain.scaling.saved import write_json

NAME = "coord_check.json"
AXES: tuple[Axis, ...] = ("width", "depth")


@dataclass(frozen=True)
class Found:
    question: Question
    curves: list[Curve]
    basins: list[Basin]

    def label(self, parametrization: str) -> str:
        return self.question.parametrization.label if parametrization == "given" else "standard"

    def groups(self) -> Iterator[tuple[str, Axis, list[Kind]]]:
        for axis in AXES:
            for parametrization in ("given", "standard"):
                if found := kinds(self.curves, parametrization, axis):
                    yield parametrization, axis, found

    def of(self, parametrization: str) -> list[Basin]:
        return [basin for basin in self.basins if basin.parametrization == parametrization]

    def plain(self) -> dict[str, Any]:
        tolerance = self.question.check.tolerance
        return {
            "version": 1,
            "check": to_plain(self.question.check),
            "run": to_plain(self.question.run),
            "verdicts": [
                {
                    "parametrization": self.label(parametrization),
                    "axis": axis,
                    "kind": kind.name,
                    "flat": kind.flat(tolerance),
                    "slopes": {str(step): kind.slope(step) for step in self.question.check.steps},
                    "steepest": {"layer": kind.steepest.layer, "slope": kind.steepest.slope},
                }
                for parametrization, axis, found in self.groups()
                for kind in found
            ],
            "curves": [
                asdict(c) | {"parametrization": self.label(c.parametrization), "slope": c.slope, "se": c.se}
                for c in self.curves
            ],
            "rates": [
                asdict(b) | {"parametrization": self.label(b.parametrization), "best": b.best}
                for b in self.basins
            ],
            "octaves": {self.label(p): octaves(self.of(p)) for p in ("given", "standard") if self.of(p)},
        }

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, self.plain())
        import matplotlib

        with matplotlib.rc_context(STYLE):
            for drawn in self._figures():
                save(drawn, folder)

    def table(self) -> str:
        steps = sorted(set(self.question.check.steps))
        lines = []
        for parametrization, axis, found in self.groups():
            sizes = self.question.sizes(axis)
            lines += [
                f"{self.label(parametrization)}: slope of ln |change| against ln {axis}, {sizes[0]} to {sizes[-1]}",
                f"  {'kind of output':<24}{'layers':>7}" + "".join(f"{f'step {s}':>9}" for s in steps)
                + f"{'steepest':>10}",
                *(self._row(kind, steps) for kind in found),
                f"  {self._verdict(found)}",
                "",
            ]  # fmt: skip
        for parametrization in ("given", "standard"):
            if basins := self.of(parametrization):
                lines += [f"{self.label(parametrization)}: best rate by width", *_rates(basins)]
                lines += [f"  {self._stays(basins)}", ""]
        return "\n".join(lines).rstrip()

    def _row(self, kind: Kind, steps: list[int]) -> str:
        layers = len({c.layer for c in kind.curves})
        slopes = "".join(f"{kind.slope(step):>9.3f}" for step in steps)
        flat = "flat" if kind.flat(self.question.check.tolerance) else "NOT FLAT"
        return f"  {kind.name:<24}{layers:>7}{slopes}{kind.steepest.slope:>10.3f}  {flat}"

    def _verdict(self, found: list[Kind]) -> str:
        tolerance = self.question.check.tolerance
        flat = sum(kind.flat(tolerance) for kind in found)
        return f"{flat} of {len(found)} kinds flat: every layer within {tolerance:g}, after every number of steps"

    def _stays(self, basins: list[Basin]) -> str:
        moved, most = octaves(basins), self.question.check.octaves
        if moved is None:
            return (
                "a best rate lies outside those that were tried, so nothing is said: give more (check.rates)"
            )
        return f"moves by {moved:.2f} factors of 2: {'stays' if moved <= most else 'DOES NOT STAY'} within {most:g}"

    def _figures(self) -> Iterator[Drawn]:
        for axis in AXES:
            groups = [(p, found) for p, a, found in self.groups() if a == axis]
            if groups:
                yield self._moves(axis, groups)
        if self.basins:
            yield self._losses()

    def _moves(self, axis: Axis, groups: list[tuple[str, list[Kind]]]) -> Drawn:
        step = max(self.question.check.steps)
        figure, axes = new(len(groups), width=5.0 * len(groups), height=4.6)
        for panel, (parametrization, found) in zip(axes, groups, strict=True):
            for i, kind in enumerate(found):
                for j, curve in enumerate(c for c in kind.curves if c.step == step):
                    means = [sum(seeds) / len(seeds) for seeds in curve.moved]
                    style = ("-", "--", ":")[i // len(SERIES) % 3]
                    name = kind.name if j == 0 else None
                    panel.plot(curve.sizes, means, style, marker="o", ms=3, color=SERIES[i % 6], label=name)
            panel.set(xscale="log", yscale="log", xlabel=axis, title=self.label(parametrization))
            sizes = self.question.sizes(axis)
            panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            panel.minorticks_off()
        low, high = (end(panel.get_ylim()[i] for panel in axes) for i, end in ((0, min), (1, max)))
        for panel in axes:
            panel.set_ylim(low, high)
        axes[0].set_ylabel(f"mean |change of the output| after {step} steps")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, handlelength=3)
        return Drawn(f"coord_check_{axis}", "Movement of every layer's output", "", figure)

    def _losses(self) -> Drawn:
        figure, axes = new(2, width=9.0, height=4.2)
        for panel, parametrization in zip(axes, ("given", "standard"), strict=True):
            basins = self.of(parametrization)
            for basin, colour in zip(basins, budget_colours(len(basins)), strict=True):
                panel.plot(basin.rates, basin.means, "o-", ms=3, color=colour, label=f"width {basin.width}")
                if basin.best:
                    panel.axvline(basin.best, color=colour, lw=0.8, ls=":")
            panel.set(xscale="log", xlabel="learning rate (of the base)", title=self.label(parametrization))
            panel.legend()
        axes[0].set_ylabel(f"loss after {self.question.check.rate_steps} steps")
        return Drawn("coord_check_rates", "Loss by learning rate", "", figure)


def _rates(basins: list[Basin]) -> Iterator[str]:
    for basin in basins:
        losses = "  ".join(f"{lr:.4g}: {loss:.4f}" for lr, loss in zip(basin.rates, basin.means, strict=True))
        best = "outside" if basin.best is None else f"{basin.best:.4g}"
        yield f"  {basin.width:>6} {best:>9}   {losses}"
