"""A sweep from its plan to its records: learning rates first, then the cells, each a process of its own."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain.config import to_plain
from llmtrain.errors import ConfigError, NumbersError
from llmtrain.run_folder import write_text
from llmtrain.sweep.cells import Cell, Role
from llmtrain.sweep.edges import TUNING, tuning_in
from llmtrain.sweep.plan import Plan, tuning_of
from llmtrain.sweep.pool import Pool
from llmtrain.sweep.runner import Runner
from llmtrain.sweep.settings import Sweep
from llmtrain.sweep.status import State, status_of
from llmtrain.sweep.tuning import Best, Rule, at_rate, best_of, next_rates, rule_of


class Conductor(Runner):
    """Runs the cells of one sweep, those that try learning rates among them."""

    def __init__(self, sweep: Sweep, pool: Pool, say: Callable[[str], None] = print):
        super().__init__(sweep.folder, pool, say)
        self.sweep = sweep

    def tuned(self, plan: Plan) -> dict[str, Rule | None]:
        """The rule of each series; none where the rate is the config's. What was tried is in ``tuning.json``.

        Raises NumbersError where every rate diverged at a corner, ConfigError where cells were begun by another rule.
        """
        tuning = tuning_of(self.sweep, plan)
        tried = {corner.id: dict[float, float]() for corner in plan.tuned}
        while jobs := [(c, lr) for c in plan.tuned for lr in next_rates(tried[c.id], tuning)]:
            cells = {(c.id, lr): at_rate(c, lr) for c, lr in jobs}
            self.run(list(cells.values()))
            for (corner, lr), cell in cells.items():
                tried[corner][lr] = self.loss(cell)
        for name, losses in tried.items():
            if not any(map(math.isfinite, losses.values())):
                rates = ", ".join(f"{lr:.4g}" for lr in sorted(losses))
                raise NumbersError(
                    f"{name}: every learning rate that was tried diverged ({rates}); take another name with a lower "
                    "sweep.tuning.first"
                )
        bests = {c.id: best_of(c, tried[c.id]) for c in plan.tuned}
        rules: dict[str, Rule | None] = {}
        for name in self.sweep.series:
            mine = [bests[c.id] for c in plan.tuned if c.series == name]
            rules[name] = rule_of(mine) if mine else None
        self._check_begun(plan, rules)
        self._write_tuning(plan, bests, rules)
        return rules

    def _check_begun(self, plan: Plan, rules: Mapping[str, Rule | None]) -> None:
        """Raises ConfigError where cells have begun at the rates of another rule: they would be mixed with new ones."""
        before = rules_of(self.folder)
        begun = [c.id for c in plan.cells if status_of(c, self.folder).state is not State.WAITING]
        if begun and before and not all(_alike(before[name], rules[name]) for name in before):
            raise ConfigError(
                f"{self.folder}: further learning rates give another rule, and {len(begun)} cells ({begun[0]} first) "
                "were begun by the one before: take another name (sweep.name=...), or the sweep.tuning.widen of before"
            )

    def _write_tuning(self, plan: Plan, bests: Mapping[str, Best], rules: Mapping[str, Rule | None]) -> None:
        value = {
            "corners": {name: to_plain(best) for name, best in bests.items()},
            "rules": {name: rule and rule._asdict() for name, rule in rules.items()},
            "on_an_edge": [name for name, best in bests.items() if not best.inside],
        }
        write_text(self.folder / TUNING, json.dumps(value, indent=1) + "\n")


def _alike(one: Rule | None, other: Rule | None) -> bool:
    """Whether two rules are one, up to how this machine rounds."""
    if one is None or other is None:
        return one is other
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in zip(one, other, strict=True))


def with_rates(cells: Sequence[Cell], rules: Mapping[str, Rule | None]) -> list[Cell]:
    """The cells with the learning rate of their series' rule, where it has one; a branch has that of its trunk."""
    trunks = {(c.series, c.n, c.seed): c for c in cells if c.role is Role.TRUNK}
    found = []
    for cell in cells:
        rule, of = rules.get(cell.series), trunks.get((cell.series, cell.n, cell.seed), cell)
        found.append(cell if rule is None else dataclasses.replace(cell, lr=rule.lr(of.n, of.tokens)))
    return found


def rules_of(folder: Path) -> dict[str, Rule | None]:
    """The rule of each series, as far as they are found."""
    found: Any = (tuning_in(folder) or {}).get("rules", {})
    return {name: rule and Rule(**rule) for name, rule in found.items()}
