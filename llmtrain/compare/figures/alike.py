"""How alike the features of series are: CKA of each pair, and of seeds of one series on the diagonal."""

import numpy as np

from llmtrain.compare import words
from llmtrain.compare.saved import Comparison
from llmtrain.scaling.figures.canvas import Drawn, plain


def alike(comparison: Comparison) -> Drawn | None:
    about = comparison.about
    budget = max(about.budgets)
    found = [one for one in comparison.alike if one.budget == budget]
    names = [s.name for s in about.series if any(s.name in (one.first, one.second) for one in found)]
    if len(names) < 2:
        return None
    from matplotlib.figure import Figure

    sums, counts = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for one in found:
        i, j = sorted((names.index(one.first), names.index(one.second)))
        sums[j, i] += one.value
        counts[j, i] += 1
    with np.errstate(invalid="ignore"):
        mean = sums / counts
    figure = Figure(figsize=(2.2 + 0.62 * len(names), 1.6 + 0.5 * len(names)))
    axis = figure.subplots()
    shown = axis.imshow(mean, vmin=0, vmax=1, cmap="cividis")
    for j, i in np.argwhere(np.isfinite(mean)):
        axis.text(
            i, j, f"{mean[j, i]:.2f}", ha="center", va="center", fontsize=8,
            color="white" if mean[j, i] < 0.5 else "black",
        )  # fmt: skip
    labels = [plain(name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=35, ha="right")
    axis.set_yticks(range(len(names)), labels)
    axis.grid(False)
    figure.colorbar(shown, ax=axis, label="linear CKA, debiased", shrink=0.8)
    caption = (
        "Mean over pairs of seeds; on the diagonal, two seeds of one series. Features of the same held-out texts. "
        f"{words.budget(about, budget)}. {words.matched(about)}."
    )
    return Drawn("alike", "How alike series are", caption, figure)
