"""The weights of a Hugging Face folder as those that a run begins with."""

from pathlib import Path
from typing import Any

from llmtrain.config import differences, to_plain
from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import ConfigError
from llmtrain.export.alone import alone
from llmtrain.export.base import Use, rescaled
from llmtrain.export.pretrained import Pretrained, behind_reserved, load_pretrained
from llmtrain.export.tokenizer import TEXTS
from llmtrain.nn.model import Model, ModelConfig

_FREE = (
    "dropout",
    "balance",
    "z_loss",
    "bias_rate",
    "dt_min",
    "dt_max",
    "chunk",
    "readout",
)  # of training, or taken into the weights: not of the function


def start_from(folder: Path, model: Model, cfg: ModelConfig, use: Use, tokenizer: Tokenizer) -> None:
    """Put the folder's weights into ``model``, whose config with its size is ``cfg``.

    A folder that was exported from a run has the run's ids; any other has its own, which the run's tokenizer shifts
    past the reserved ones, whose rows stay newly drawn. Raises ConfigError where the folder's model is another
    function, naming what differs, or where its tokenizer makes other ids.
    """
    with alone():
        found = load_pretrained(folder)
        theirs = _tokenizer(folder)
    if (found.use.visibility, found.use.encoder) != (use.visibility, use.encoder):
        raise ConfigError(
            f"init_from={folder} was trained for {_kind(found.use)}, and this run's objective needs {_kind(use)}"
        )
    for key, ours, theirs in differences(_function(cfg, use), _function(found.cfg, use)):
        raise ConfigError(f"init_from={folder} has model.{key}={theirs}, and this run {ours}: set it so")
    fresh = model.state_dict()
    shift = 0 if found.vocab_size == tokenizer.vocab_size else tokenizer.n_reserved
    _check_tokenizer(folder, tokenizer, theirs, shift)
    state = found.state if not shift else behind_reserved(found, fresh, n_reserved=shift)
    state = rescaled(state, 1 / cfg.readout)
    _check_shapes(folder, found, fresh, state)
    model.load_state_dict(state, strict=False)  # a head that the folder has not stays newly drawn


def _kind(use: Use) -> str:
    return f"{use.visibility.value} {'encoder-decoder' if use.encoder else 'stack'}"


def _function(cfg: ModelConfig, use: Use) -> dict[str, Any]:
    """What the model computes, layer by layer, as plain data."""
    n_layers, d_model = cfg.shape
    plain: dict[str, Any] = to_plain(cfg) | {"n_layers": n_layers, "d_model": d_model}
    plain["layers"] = [to_plain(cfg.layer(i)) for i in range(n_layers)]
    if not use.encoder:
        del plain["cross"], plain["share_embeddings"]
    if not use.tokens:
        del plain["tie_embeddings"]
    return _without(plain)


def _without(node: Any) -> Any:
    if isinstance(node, dict):
        # ratios are another way to say a width, which the shapes tell
        return {k: _without(v) for k, v in node.items() if k not in (*_FREE, "ratio", "multiple_of")}
    return [_without(item) for item in node] if isinstance(node, list) else node


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises no narrower type
        raise ConfigError(f"init_from={folder}: its tokenizer cannot be opened ({error})") from None


def _check_tokenizer(folder: Path, ours: Tokenizer, theirs: Any, shift: int) -> None:
    for text in TEXTS:
        expected = [
            i + shift for i in theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ]
        if sorted(ours.encode(text).tolist()) != sorted(expected):
            raise ConfigError(
                f"init_from={folder} has another tokenizer, so its weights mean other tokens: give its own, with "
                f"tokenizer=huggingface tokenizer.file={folder / 'tokenizer.json'}"
            )


def _check_shapes(folder: Path, found: Pretrained, fresh: dict[str, Any], state: dict[str, Any]) -> None:
    for name in fresh.keys() | state.keys():
        ours, theirs = fresh.get(name), state.get(name)
        head = name.startswith("head.") and (ours is None or theirs is None)
        if not head and (ours is None or theirs is None or ours.shape != theirs.shape):
            said = [None if t is None else tuple(t.shape) for t in (theirs, ours)]
            raise ConfigError(
                f"init_from={folder}: {name} is {said[0]} there and {said[1]} in this run, whose vocabulary is "
                f"{found.vocab_size} there"
            )
