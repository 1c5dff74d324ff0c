"""The size dial: one setting for depth and width, or for a number of parameters."""

from pydantic import PositiveFloat

from llmtrain.config import config


@config
class Dial:
    """Depth with a width, or depth with a number of parameters that the width is solved for.

    Layers set their own fields relative to the width, so nothing else changes with the dial. ``model.d_model`` and
    ``model.n_layers``, where given, come before it.
    """

    n_layers: int
    d_model: int | None = None
    n: PositiveFloat | None = None  # parameters without the input embedding, the head counted once
    step: int = 8  # the solver tries its multiples, of them those that the layers can have (head_dim)

    def __post_init__(self) -> None:
        if (self.d_model is None) == (self.n is None):
            raise ValueError(
                f"give size.d_model or size.n, one of them: got d_model={self.d_model}, n={self.n}"
            )
        for name in ("n_layers", "d_model", "step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
