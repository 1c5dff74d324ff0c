"""What a layer is, before there are tensors and after: a frozen config that builds a module with a cost."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from llmtrain.config import config
from llmtrain.types import ANY, Hidden, Seq, Visibility


class Extent(NamedTuple):
    """How much of one unpacked row passes through a stack: what FLOPs are counted from."""

    tokens: int
    visibility: Visibility
    prefix: int = 0  # tokens of the prefix, where visibility is PREFIX
    source: int = 0  # tokens of the stream that cross-attention reads

    def pairs(self, window: int | None = None) -> int:
        """Visible pairs of positions in one document of ``tokens`` tokens: attention's work, whatever the kernel."""
        t, w = self.tokens, self.tokens if window is None else min(window, self.tokens)
        past = w * (w + 1) // 2 + (t - w) * w
        ahead = {Visibility.CAUSAL: 0, Visibility.PREFIX: self.prefix, Visibility.BIDIRECTIONAL: t}[
            self.visibility
        ]
        w = min(w, ahead)
        return past + (w * (w - 1) // 2 + (ahead - w) * (w - 1) if ahead else 0)


class Flops(NamedTuple):
    """FLOPs of a forward pass over one row, a multiply-add as two."""

    model: int = 0  # the currency: what the function needs, whatever the backend
    counter: int = 0  # what torch's FlopCounterMode counts on the reference path

    def plus(self, *others: "Flops") -> "Flops":
        return Flops(*(sum(parts) for parts in zip(self, *others, strict=True)))


def dense_flops(tokens: int, *modules: nn.Linear) -> Flops:
    """Of matrix products with the weights of ``modules``, each applied to ``tokens`` tokens."""
    n = 2 * tokens * sum(m.weight.numel() for m in modules)
    return Flops(n, n)


class Splits:
    """What can be shared out over the ranks of a tensor axis, if its config says ``splits_over_ranks``."""

    def split_over(self, mesh: DeviceMesh) -> None:
        """Leave this rank its share of the matrices, so that outputs are those of the whole; on the meta device.

        All ranks of ``mesh`` see the same tokens. Raises ConfigError where the shares do not come out whole.
        """
        raise NotImplementedError(f"{type(self).__name__} has no plan for a tensor axis")


class MixerModule(Splits, nn.Module, ABC):
    """The only kind of layer through which one position hears another."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Float[Tensor, "B T D"]: ...

    @abstractmethod
    def init_state(self, rows: int) -> Any:
        """The state before the first token of ``rows`` rows, for ``step``."""

    @abstractmethod
    def step(self, x: Float[Tensor, "B T D"], seq: Seq, state: Any) -> tuple[Float[Tensor, "B T D"], Any]:
        """The output at the next ``T`` tokens and the state after them; piece by piece equals ``forward``."""

    @abstractmethod
    def flops(self, extent: Extent) -> Flops: ...


class MLPModule(Splits, nn.Module, ABC):
    """A layer that treats every position alike and alone (``seq`` only says which are padding)."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "B T D"], seq: Seq) -> Hidden: ...

    @abstractmethod
    def flops(self, extent: Extent) -> Flops: ...

    def active_fraction(self) -> dict[str, float]:
        """By parameter name, the share that one token uses, where that is not all of it (experts)."""
        return {}


class HeadModule(nn.Module, ABC):
    """What an objective reads hidden states with."""

    @abstractmethod
    def flops(self, scored: int, batch_rows: int) -> Flops:
        """Of a forward pass over ``scored`` positions of one row, in a batch of ``batch_rows`` over all ranks."""

    def tie(self, table: nn.Parameter) -> None:
        """Use the input embedding's table [V D] as its own, where it has one over the vocabulary."""


@config
class LayerConfig(ABC):  # noqa: B024 - the two kinds below say what they build
    """Fields never depend on the width, so that one dial can set it; the width arrives at ``build``."""

    @property
    def supports(self) -> frozenset[Visibility]:
        """What it can promise to see and not to see."""
        return ANY

    @property
    def splits_over_ranks(self) -> bool:
        """Whether its module has a plan for a tensor axis (``split_over``)."""
        return False

    @property
    def one_document(self) -> bool:
        """Whether a row must hold one document alone, since the layer cannot keep several apart."""
        return False


@config
class Mixer(LayerConfig):
    @abstractmethod
    def build(self, d_model: int, visibility: Visibility) -> MixerModule: ...


@config
class MLP(LayerConfig):
    @abstractmethod
    def build(self, d_model: int, visibility: Visibility) -> MLPModule: ...
