"""A Hugging Face folder as a model of ours, for a run that begins from its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llmtrain.errors import ConfigError
from llmtrain.export.base import Use
from llmtrain.export.families import FAMILIES, from_hf
from llmtrain.export.sizes import check_sizes
from llmtrain.nn.model import ModelConfig
from llmtrain.types import Visibility

_TABLES = {"embed.weight", "source_embed.weight", "head.weight"}


class Pretrained(NamedTuple):
    cfg: ModelConfig
    use: Use  # what it was trained for
    state: dict[str, Tensor]  # of a ``Model``, float32, tied tensors under both names
    vocab_size: int


def load_pretrained(folder: Path) -> Pretrained:
    """Read ``config.json`` and safetensors; nothing of a folder is executed or unpickled, nothing is downloaded.

    Raises ConfigError where the folder is none, or of an architecture that is not known here, or where its weights are
    not those of its config.
    """
    path = folder / "config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): give a folder that save_pretrained wrote"
        ) from None
    kind = said.get("model_type") if isinstance(said, dict) else None
    if kind not in FAMILIES:
        raise ConfigError(f"{path} is of model_type={kind}, and {', '.join(sorted(FAMILIES))} are known here")
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} holds no safetensors, and nothing else is read: save the model again with them"
        )
    n_values = check_sizes(folder, said)
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "Hugging Face folders are read with transformers: pip install -e .[export]"
        ) from None
    known = [FAMILIES[kind].architecture(Use(Visibility.CAUSAL, tokens=tokens)) for tokens in (True, False)]
    name = (said.get("architectures") or known)[0]
    if name not in known:
        raise ConfigError(f"{path} is a {name}, and {' and '.join(dict.fromkeys(known))} are known here")
    kept = {"local_files_only": True, "trust_remote_code": False}
    try:  # by name, so that no code of the folder's own can be meant
        cls = getattr(transformers, name)
        with torch.device("meta"):  # nothing is allocated for what the files do not hold
            meant = sum(p.numel() for p in cls(cls.config_class.from_pretrained(folder, **kept)).parameters())
        if meant > n_values:
            raise ConfigError(f"its config describes {meant:,} weights, and its files hold {n_values:,}")
        model, loading = cls.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **kept,
        )
    except Exception as error:  # the library raises no narrower type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{folder} cannot be opened by transformers: {lines[-1].strip()}") from None
    wrong = {key: found for key, found in loading.items() if found}
    if wrong:
        key, found = next(iter(wrong.items()))
        which = ", ".join(map(str, found))[:200]
        raise ConfigError(f"{folder}: its weights are not those of its config ({key}: {which})")
    cfg, use, state = from_hf(model.config.to_dict() | {"architectures": [name]}, model.state_dict())
    return Pretrained(cfg, use, state, len(state["embed.weight"]))


def behind_reserved(found: Pretrained, fresh: Mapping[str, Tensor], *, n_reserved: int) -> dict[str, Tensor]:
    """``found.state`` for a run whose tokenizer is the folder's own, shifted by ``n_reserved`` ids.

    The tables' first rows are those of ``fresh``, the state of the run's newly drawn model; then come theirs. A table
    that they made longer than their tokenizer is cut. A folder that was exported from a run needs none of this.
    Raises ConfigError where their table is shorter than the run's vocabulary.
    """
    out = dict(found.state)
    for name in _TABLES & out.keys():
        wanted = len(fresh[name]) - n_reserved
        if wanted > len(out[name]):
            raise ConfigError(
                f"the folder's table has {len(out[name])} rows, but the run's tokenizer makes {wanted} ids of text: "
                "use the tokenizer of that folder"
            )
        out[name] = torch.cat((fresh[name][:n_reserved].to(out[name]), out[name][:wanted]))
    return out
