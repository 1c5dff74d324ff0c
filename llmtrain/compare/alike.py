"""How alike trained models are in what they make of the same texts."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from llmtrain.compare.contestants import Contestant
from llmtrain.compare.saved import Alike
from llmtrain.compare.scores import Scores
from llmtrain.evaluation.geometry import cka_matrix


def alike(those: Sequence[Contestant], scores: Mapping[str, Scores]) -> tuple[Alike, ...]:
    """Of every two trained models of one budget."""
    found: list[Alike] = []
    trained = [one for one in those if one.role == "trained"]
    for budget in dict.fromkeys(one.cell.budget for one in trained):
        mine = [one for one in trained if one.cell.budget == budget]
        features = {one.id: scores[one.id].features for one in mine}
        matrix = cka_matrix({name: x for name, x in features.items() if x is not None})
        found += [
            Alike(
                first=mine[i].cell.series,
                second=mine[j].cell.series,
                first_seed=mine[i].cell.seed,
                second_seed=mine[j].cell.seed,
                budget=round(budget),
                value=float(matrix[i, j]),
            )
            for i, j in combinations(range(len(mine)), 2)
        ]
    return tuple(found)
