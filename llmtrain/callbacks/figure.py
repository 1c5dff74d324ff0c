"""The loss figure of a run, from its ``metrics.jsonl``."""

from collections.abc import Collection
from pathlib import Path

from llmtrain.callbacks.loggers.jsonl import read


def loss_figure(folder: Path, title: str, *, score_names: Collection[str], unit: str) -> None:
    """Write ``figures/loss.png`` and ``.svg``: training loss and each held-out set's scores against raw tokens."""
    rows = read(folder / "metrics.jsonl")
    train = [row for row in rows if row.get("loss") is not None]
    if not train:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tokens_at = {row["step"]: row["tokens"] for row in train}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot([r["tokens"] for r in train], [r["loss"] for r in train], lw=1, color="C0", label="training")
    names = sorted({key for row in rows for key in row if key.partition("/")[2] in score_names})
    for i, name in enumerate(names, 1):
        points = [(tokens_at[r["step"]], r[name]) for r in rows if name in r and r["step"] in tokens_at]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", ms=4, color=f"C{i}", label=name)
    axes.set(xlabel="raw tokens", ylabel=f"loss ({unit})", title=title)
    axes.set_ylim(top=min(axes.get_ylim()[1], train[0]["loss"] * 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    (folder / "figures").mkdir(exist_ok=True)
    for suffix in ("png", "svg"):
        figure.savefig(folder / "figures" / f"loss.{suffix}", dpi=130)
    plt.close(figure)
