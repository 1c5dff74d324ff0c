"""What a public model family is to us: its config from ours and back, and the same weights under other names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.nn.model import Layer, ModelConfig
from llmtrain.types import BOS, PAD, Visibility

T = TypeVar("T")


class Use(NamedTuple):
    """What a model is trained for: what an architecture alone does not say."""

    visibility: Visibility  # of the trunk
    encoder: bool = False  # whether a second trunk reads a source
    tokens: bool = True  # whether its head scores tokens; else only its hidden states are wanted


Auto = Literal["AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModel"]


class Public(NamedTuple):
    """A model as the class ``architecture`` of ``transformers`` has it in memory."""

    architecture: str
    opens: Auto  # the class that opens its folder
    config: dict[str, Any]
    state: dict[str, Tensor]


class Rule(NamedTuple):
    """The same numbers on both sides: one tensor of ours, one or more of theirs."""

    ours: str
    theirs: tuple[str, ...]
    give: Callable[[Tensor], Sequence[Tensor]] = lambda t: (t,)
    take: Callable[[Sequence[Tensor]], Tensor] = lambda ts: ts[0]


def parts(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Rule:
    """A matrix that we hold fused: theirs are its rows."""
    return Rule(ours, tuple(theirs), lambda t: t.split(list(sizes), -2), lambda ts: torch.cat(list(ts), -2))


def centred(ours: str, theirs: str) -> Rule:
    """A gain that they hold as its difference from 1."""
    return Rule(ours, (theirs,), lambda t: (t - 1,), lambda ts: ts[0] + 1)


def copies(ours: str, theirs: Sequence[str]) -> Rule:
    """One table that they hold several times over."""
    return Rule(ours, tuple(theirs), lambda t: tuple(t.clone() for _ in theirs))


class Family(ABC):
    """A public architecture. All methods are pure, and ``rules`` serves both directions.

    They raise ConfigError, naming the key, the reason and the way out, where a config of one side has no equal on
    the other.
    """

    model_type: str
    base = "model."  # what the names of the tensors of a model with a head begin with
    opens: Auto = "AutoModelForCausalLM"

    @abstractmethod
    def architecture(self, use: Use) -> str: ...

    @abstractmethod
    def settings(self, cfg: ModelConfig, use: Use) -> dict[str, Any]:
        """Their config, but for what ``common`` adds."""

    @abstractmethod
    def read(self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, Use]:
        """The inverse of ``settings``, from a whole config; ``state`` tells what it leaves open."""

    @abstractmethod
    def rules(self, cfg: ModelConfig) -> Iterator[Rule]:
        """Of every tensor but a head that is tied to the embedding; their names are those of the model with a head."""

    def give(self, cfg: ModelConfig, use: Use, state: Mapping[str, Tensor], *, seq_len: int | None) -> Public:
        """``state`` has our names; ``seq_len`` is the length that was trained on, which they call a maximum."""
        config = {"model_type": self.model_type} | self.settings(cfg, use)
        config |= common(config, len(state["embed.weight"]), seq_len)
        left, out = dict(state), dict[str, Tensor]()
        if cfg.tie_embeddings or not use.tokens:
            left.pop("head.weight", None)
        for rule in self._used(cfg, use):
            if rule.ours not in left:
                raise ConfigError(
                    f"{rule.ours}: this model has no such tensor, so {self.model_type} cannot be it"
                )
            out |= dict(zip(rule.theirs, rule.give(left.pop(rule.ours)), strict=True))
        left = {name: t for name, t in left.items() if not (name.startswith("head.") and not use.tokens)}
        assert not left, f"{self.model_type} has no place for {sorted(left)}"
        opens: Auto = self.opens if use.tokens else "AutoModel"
        return Public(self.architecture(use), opens, config, {n: t.contiguous() for n, t in out.items()})

    def take(
        self, theirs: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> tuple[ModelConfig, Use, dict[str, Tensor]]:
        """Our config and our tensors, tied ones under both names; ``state`` is that of the class with a head."""
        cfg, use = self.read(theirs, state)
        left, out = dict(state), {}
        for rule in self._used(cfg, use):
            missing = [name for name in rule.theirs if name not in left]
            if missing:
                raise ConfigError(
                    f"the weights have no {', '.join(missing)}: they are not those of their config"
                )
            out[rule.ours] = rule.take([left.pop(name) for name in rule.theirs])
        if cfg.tie_embeddings:
            out["head.weight"] = out["embed.weight"]
            left = {name: t for name, t in left.items() if not name.startswith("lm_head.")}
        if left:
            raise ConfigError(
                f"the weights hold {', '.join(sorted(left)[:4])}, which {self.model_type} has no place for"
            )
        return cfg, use, out

    def _used(self, cfg: ModelConfig, use: Use) -> Iterator[Rule]:
        for rule in self.rules(cfg):
            if use.tokens:
                yield rule
            elif rule.ours != "head.weight":
                yield rule._replace(theirs=tuple(name.removeprefix(self.base) for name in rule.theirs))


def common(config: Mapping[str, Any], vocab_size: int, seq_len: int | None) -> dict[str, Any]:
    """What all their configs say of ids (BOS alone separates, begins and ends) and lengths, each stack's own too."""
    out: dict[str, Any] = {
        "vocab_size": vocab_size,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": BOS,
    }
    if seq_len is not None:
        out["max_position_embeddings"] = seq_len
    return out | {stack: config[stack] | out for stack in ("encoder", "decoder") if stack in config}


def one_of(values: Iterable[T], what: str, family: str) -> T:
    """The value that all layers share, since the family has one for all."""
    seen = list(dict.fromkeys(values))
    if len(seen) > 1:
        raise ConfigError(
            f"layers differ in {what} ({', '.join(map(str, seen))}), but {family} has one for all: train with one"
        )
    return seen[0]


def refuse(key: str, value: object, family: str, *, why: str, way_out: str) -> ConfigError:
    return ConfigError(f"{key}={value} cannot be exported to {family}, {why}: train with {way_out}")


def rescaled(state: Mapping[str, Tensor], readout: float) -> dict[str, Tensor]:
    """``state`` with what multiplies hidden states before the head taken into the gain that they come from."""
    gain = "trunk.norm.weight"
    return {**state, gain: state[gain] * readout}


def layers_of(cfg: ModelConfig) -> list[Layer]:
    return [cfg.layer(i) for i in range(cfg.shape[0])]


def pattern(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The shortest pattern that makes these layers when repeated."""
    n = len(layers)
    return next(
        tuple(layers[:k]) for k in range(1, n + 1) if all(layers[i] == layers[i % k] for i in range(n))
    )


def width_fields(d_ff: int, d_model: int) -> dict[str, Any]:
    """``ratio`` and ``multiple_of`` of an MLP of that inner width."""
    return {"ratio": d_ff / d_model, "multiple_of": 8 if d_ff % 8 == 0 else 1}


def rope_base(theirs: Mapping[str, Any], *, default: float = 10_000.0) -> float:
    """Of their rotary positions, which must be plain."""
    given = theirs.get("rope_parameters") or {}
    kind, share = given.get("rope_type", "default"), given.get("partial_rotary_factor", 1.0)
    if kind != "default" or share not in (None, 1.0):
        raise ConfigError(
            f"rope_parameters={dict(given)}: only plain rotary positions over whole heads are known here; choose "
            "another model"
        )
    return float(given.get("rope_theta", default))


def expect(theirs: Mapping[str, Any], **values: object) -> None:
    """Refuse a config of theirs that has a feature which ours has not."""
    for key, value in values.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if key in theirs and theirs[key] not in allowed:
            raise ConfigError(
                f"{key}={theirs[key]} is not known here ({allowed[0]} is): choose another model"
            )
