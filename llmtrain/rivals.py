"""``transformers``' models of a run's kind and shape, stepped in turn with ours by the benchmark."""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from llmtrain.data.prepare import prepare
from llmtrain.errors import ConfigError, StorageError
from llmtrain.run import Run
from llmtrain.setup import Setup, set_up
from llmtrain.trainer import autocast, quiet
from llmtrain.types import IGNORE, Visibility

Inputs = dict[str, Tensor]
P = ParamSpec("P")
T = TypeVar("T")


class Elsewhere:
    """The public models of a run in a process of their own, where nothing that ours sets for itself helps them or not.

    Ours keeps what it frees (``ops.memory``) and is deterministic; they run as their users run them.
    """

    def __init__(self, run: Run):
        """Raises ConfigError where there is no such model."""
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            self.seconds: dict[str, list[float]] = {name: [] for name in self._there(_make, run)}
        except BaseException:
            self.close()
            raise

    def step(self) -> None:
        """One step of each."""
        for name, seconds in self.seconds.items():
            seconds.append(self._there(_step, name))

    def close(self) -> None:
        self._pool.shutdown()

    def _there(self, f: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        try:
            return self._pool.submit(f, *args, **options).result()
        except BrokenProcessPool:
            raise StorageError(
                "the process of transformers' models was killed, as it is where memory is short: take a smaller size "
                "or fewer batch_rows"
            ) from None


_made: dict[str, "Rival"] = {}  # in the process of their own


def _make(run: Run) -> list[str]:
    quiet()
    if run.trainer.threads is not None:
        torch.set_num_threads(run.trainer.threads)
    device = torch.device("cuda" if run.trainer.on_gpu else "cpu")
    _made.update(rivals(set_up(run, prepare(run.data, run.tokenizer)), device))
    return list(_made)


def _step(name: str) -> float:
    return _made[name].step()


class Rival:
    """Another model at the same batch, precision and kind of optimiser, with weights of its own."""

    def __init__(self, model: nn.Module, inputs: Inputs, setup: Setup, device: torch.device):
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.trainer = setup.run.trainer
        self.inputs = {name: x.to(device) for name, x in inputs.items()}

    def step(self) -> float:
        """Its seconds."""
        start = self._now()
        with autocast(self.trainer):
            loss = self.model(**self.inputs).loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return self._now() - start

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def rivals(setup: Setup, device: torch.device) -> dict[str, Rival]:
    """By name, the public models that do what the run does, at its shape; of experts, one for each of their kernels.

    Needs the extra ``export``. Raises ConfigError where there is no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("against=transformers needs transformers: pip install 'llmtrain[export]'")
    objective, model = setup.run.objective, setup.task.model
    mixers = {type(block.mixer).__name__ for block in model.trunk.blocks}
    experts = any(hasattr(block.mlp, "router") for block in model.trunk.blocks)
    made: dict[str, nn.Module]
    if objective.encoder and mixers == {"AttentionModule"} and not experts:
        made = {"T5Gemma": _t5gemma(setup)}
    elif objective.sees is Visibility.BIDIRECTIONAL and mixers == {"AttentionModule"} and not experts:
        made = {"EuroBert": _eurobert(setup)}
    elif objective.sees is Visibility.CAUSAL and mixers == {"AttentionModule"}:
        made = _mixtral(setup) if experts else {"Llama": _llama(setup)}
    elif objective.sees is Visibility.CAUSAL and mixers == {"SSMModule"}:
        made = {"Mamba2": _mamba2(setup)}
    else:
        raise ConfigError(
            f"against=transformers: there is no public model that trains {type(objective).__name__} on "
            f"{' and '.join(sorted(mixers))}; leave against= out"
        )
    inputs = _inputs(setup)
    return {name: Rival(one, inputs, setup, device) for name, one in made.items()}


def _inputs(setup: Setup) -> Inputs:
    """Random ids: every position is a target, but for masked models, which score as many as ours."""
    objective, run = setup.run.objective, setup.run
    rows, vocab_size = run.batch_rows, setup.prepared.vocab.size
    *encoder, trunk = objective.passes(run.seq_len)
    ids = torch.randint(0, vocab_size, (rows, trunk.tokens))
    if encoder:
        return {"input_ids": torch.randint(0, vocab_size, (rows, encoder[0].tokens)), "labels": ids}
    labels = ids.clone()
    if objective.sees is Visibility.BIDIRECTIONAL:
        labels[:, trunk.scored :] = IGNORE
    return {"input_ids": ids, "labels": labels}


def _shape(setup: Setup) -> dict[str, Any]:
    """What all configs of ``transformers`` call alike."""
    cfg = setup.run.sized(setup.prepared.vocab.size)
    n_layers, d_model = cfg.shape
    return {
        "vocab_size": setup.prepared.vocab.size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "tie_word_embeddings": cfg.tie_embeddings,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def _attention(setup: Setup) -> dict[str, Any]:
    block: Any = setup.task.model.trunk.blocks[0]
    return _shape(setup) | {
        "num_attention_heads": block.mixer.n_heads,
        "num_key_value_heads": block.mixer.n_kv_heads,
        "max_position_embeddings": 2 * setup.run.seq_len,
    }


def _dense(setup: Setup) -> dict[str, Any]:
    block: Any = setup.task.model.trunk.blocks[0]
    return _attention(setup) | {"intermediate_size": block.mlp.down.in_features}


def _llama(setup: Setup) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_dense(setup)))


def _eurobert(setup: Setup) -> nn.Module:
    from transformers import EuroBertConfig, EuroBertForMaskedLM

    return EuroBertForMaskedLM(EuroBertConfig(**_dense(setup)))


def _t5gemma(setup: Setup) -> nn.Module:
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration
    from transformers.models.t5gemma import T5GemmaModuleConfig

    block: Any = setup.task.model.trunk.blocks[0]
    n_layers = len(setup.task.model.trunk.blocks)
    # no soft caps and no windows: ours has none
    stack = _dense(setup) | {
        "head_dim": block.mixer.cfg.head_dim,
        "query_pre_attn_scalar": block.mixer.cfg.head_dim,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "layer_types": ["full_attention"] * n_layers,
    }
    encoder, decoder = T5GemmaModuleConfig(**stack), T5GemmaModuleConfig(**stack, is_decoder=True)
    vocab_size = setup.prepared.vocab.size
    return T5GemmaForConditionalGeneration(
        T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=vocab_size, attn_implementation="eager")
    )


def _mixtral(setup: Setup) -> dict[str, nn.Module]:
    from transformers import MixtralConfig, MixtralForCausalLM

    moe: Any = setup.task.model.trunk.blocks[0].mlp
    cfg = _attention(setup) | {
        "intermediate_size": moe.down.shape[-1],
        "num_local_experts": moe.cfg.n_experts,
        "num_experts_per_tok": moe.cfg.top_k,
        "output_router_logits": True,  # else its loss has no balance term, which ours has
    }
    return {
        f"Mixtral ({kernel})": MixtralForCausalLM(MixtralConfig(**cfg, experts_implementation=kernel))
        for kernel in ("eager", "grouped_mm")
    }


def _mamba2(setup: Setup) -> nn.Module:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    mixer: Any = setup.task.model.trunk.blocks[0].mixer
    cfg, shape = mixer.cfg, _shape(setup)
    return Mamba2ForCausalLM(
        Mamba2Config(
            **shape,
            num_heads=cfg.expand * shape["hidden_size"] // cfg.head_dim,
            head_dim=cfg.head_dim,
            state_size=cfg.d_state,
            n_groups=cfg.groups,
            expand=cfg.expand,
            conv_kernel=cfg.conv,
        )
    )
