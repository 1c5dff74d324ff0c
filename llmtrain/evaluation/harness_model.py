"""A run as a model of lm-eval, the EleutherAI harness: imported only where that is installed."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from llmtrain import philox
from llmtrain.errors import ConfigError
from llmtrain.evaluation.likelihood import Ask, WritesOn
from llmtrain.evaluation.perplexity import stretches
from llmtrain.evaluation.subject import Subject
from llmtrain.nn.generate import Sampling, generate
from llmtrain.types import BOS

_MOST_TOKENS = 256  # of an answer, where a task does not say


class HarnessModel(LM):
    """Requests are batched here, and contexts that are too long lose their beginning."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject
        self._likelihood = WritesOn(subject)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Context and continuation are tokenized apart, spaces between them with the continuation."""
        asks = [self._ask(*request.args) for request in requests]
        answers = iter(self._likelihood.answer([ask for ask in asks if ask.continuation]))
        found = (next(answers) if ask.continuation else None for ask in asks)
        return [(0.0, True) if one is None else (-float(one.nats.sum()), one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Half of seq_len at a time, after as much as there is room for; the end of the text is not scored."""
        seq_len = self._subject.seq_len
        parts = [
            stretches((BOS, *self._ids(request.args[0])), stride=seq_len // 2, seq_len=seq_len)
            for request in requests
        ]
        answers = iter(self._likelihood.answer([ask for asks in parts for ask in asks]))
        return [-float(sum(next(answers).nats.sum() for _ in asks)) for asks in parts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The likeliest token each time, up to the first of the texts that end an answer."""
        return [self._generated(*request.args) for request in requests]

    def _ask(self, context: str, continuation: str) -> Ask:
        bare = context.rstrip()
        return Ask((BOS, *self._ids(bare)), self._ids(context[len(bare) :] + continuation))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._subject.tokenizer.encode(text).tolist())

    def _generated(self, context: str, how: dict[str, Any]) -> str:
        if how.get("do_sample"):
            raise ConfigError("the task asks for random samples (do_sample), and answers are greedy here")
        tokenizer, seq_len = self._subject.tokenizer, self._subject.seq_len
        n_tokens = min(how.get("max_gen_toks", _MOST_TOKENS), seq_len // 2)
        begun, _ = self._likelihood.begin((BOS, *self._ids(context)), n_tokens)
        made = generate(
            self._subject.model,
            begun.prompt,
            n_tokens=n_tokens,
            n_reserved=tokenizer.n_reserved,
            sampling=Sampling(temperature=0.0),
            rng=philox.generator(0, "harness"),
            prefix=begun.prefix,
            source=begun.source,
        )
        text = tokenizer.decode(made)
        until = how.get("until") or []
        for end in [until] if isinstance(until, str) else until:
            text = text.partition(end)[0] if end else text
        return text
