"""A model of texts' embeddings as ``sentence-transformers`` has it: backbone, pooling, projection, unit length."""

from pathlib import Path
from typing import Any

from llmtrain.errors import ConfigError
from llmtrain.nn.model import Model
from llmtrain.objectives.embedding import ContrastiveHead

_POOLING = {"mean": "mean", "last": "lasttoken", "first": "cls"}


def wrap(folder: Path, model: Model, seq_len: int) -> None:
    """Put ``sentence-transformers``' own files beside a backbone and its tokenizer.

    Raises ConfigError where it is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Dense, Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling
    except ImportError:
        raise ConfigError(
            "contrastive runs are exported with sentence-transformers: pip install -e .[export]"
        ) from None
    head = model.head
    assert isinstance(head, ContrastiveHead)
    backbone = Transformer(str(folder), max_seq_length=seq_len)
    d_model = backbone.get_embedding_dimension()
    modules: list[Any] = [backbone, Pooling(d_model, _POOLING[head.pooling])]
    if head.projection is not None:
        dense = Dense(d_model, head.projection.out_features, bias=False, activation_function=None)
        dense.linear.load_state_dict({"weight": head.projection.weight})
        modules.append(dense)
    whole = SentenceTransformer(modules=[*modules, Normalize()], similarity_fn_name="cosine", device="cpu")
    whole.save_pretrained(str(folder), create_model_card=False)
