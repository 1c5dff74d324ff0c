"""A run as a folder that ``transformers`` or ``sentence-transformers`` opens, checked before it is left behind."""

import shutil
from pathlib import Path
from typing import NamedTuple

from llmtrain.data.tokenizers.base import Tokenizer
from llmtrain.errors import ConfigError
from llmtrain.export.alone import alone
from llmtrain.export.base import Public, Use
from llmtrain.export.compare import embeddings, logits
from llmtrain.export.families import to_hf
from llmtrain.export.sentence import wrap
from llmtrain.export.tokenizer import TEXTS, check_ids, to_fast
from llmtrain.nn.model import Model, ModelConfig, TokenHead
from llmtrain.objectives.base import Objective
from llmtrain.objectives.embedding import ContrastiveHead
from llmtrain.types import BOS, MASK, PAD, UNK, Visibility


class Trained(NamedTuple):
    """What a run leaves, in memory; its tokenizer's files too."""

    cfg: ModelConfig
    model: Model
    objective: Objective
    tokenizer: Tokenizer
    tokenizer_folder: Path
    seq_len: int


class Report(NamedTuple):
    architecture: str
    opens: str  # the class that opens the folder
    difference: float  # largest, of logits or of embeddings
    note: str = ""  # what a user of the folder must know


def export(run: Trained, out: Path) -> Report:
    """Write ``out``, open it as others would, and compare.

    Raises ConfigError where there is no public equal, where ``out`` exists, or where what was opened is not equal; then
    nothing is left.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another name, or remove it")
    run.model.float().eval()
    use = use_of(run.model, run.objective)
    public = to_hf(run.cfg, use, run.model.state_dict(), seq_len=run.seq_len)
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with alone():
            _write(run, public, partial)
            if use.tokens:
                found = logits(
                    run.model, use, run.tokenizer, partial, opens=public.opens, seq_len=run.seq_len
                )
                report = Report(public.architecture, public.opens, found, _note(use, public))
            else:
                wrap(partial, run.model, run.seq_len)
                found = embeddings(run.model, use, run.tokenizer, partial, seq_len=run.seq_len)
                report = Report(public.architecture, "SentenceTransformer", found)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def use_of(model: Model, objective: Objective) -> Use:
    """Raises ConfigError where a head is of no kind that is known here."""
    if not isinstance(model.head, TokenHead | ContrastiveHead):
        raise ConfigError(f"the head of {type(objective).__name__} has no public equal")
    return Use(objective.sees, objective.encoder, tokens=isinstance(model.head, TokenHead))


def _note(use: Use, public: Public) -> str:
    if use.visibility is Visibility.BIDIRECTIONAL and public.opens == "AutoModelForCausalLM":
        return (
            "a masked LM behind a causal name (is_causal=false): its logits are those of each token's own place; train "
            "with qk_norm=false for AutoModelForMaskedLM"
        )
    return ""


def _write(run: Trained, public: Public, folder: Path) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(**public.config)
    model = getattr(transformers, public.architecture)(config)
    missing, unexpected = model.load_state_dict(public.state, strict=False)
    assert not unexpected and all(name.startswith("lm_head") for name in missing), (missing, unexpected)
    if model.can_generate():
        start = {"decoder_start_token_id": BOS} if run.model.encoder is not None else {}
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=BOS, eos_token_id=BOS, pad_token_id=PAD, **start
        )
    model.save_pretrained(folder)
    fast = to_fast(run.tokenizer_folder, ends=run.model.encoder is not None)
    named = {"bos": BOS, "eos": BOS, "pad": PAD, "mask": MASK, "unk": UNK}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_max_length=run.seq_len,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": fast.id_to_token(i) for name, i in named.items()},
    )
    tokenizer.save_pretrained(folder)
    check_ids(transformers.AutoTokenizer.from_pretrained(folder), run.tokenizer, TEXTS)
