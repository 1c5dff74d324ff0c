"""Some endings of held-out documents, as a cloze asks for them."""

from llmtrain.evaluation.endings import Cloze, clozes
from llmtrain.evaluation.tasks import at_most


def cloze_items(test, every, *, most: int, n_candidates: int, context_bytes: int) -> list[Cloze]:
    found = clozes(
        test, every, n_candidates=n_candidates, context_bytes=context_bytes, allowed=lambda text: True
    )
    return [make() for make in at_most(found, most) if make is not None]
