"""Sample text from a run: ``python scripts/generate.py RUN --prompt "def main" --tokens 100``."""

import argparse

from llmtrain.cli import guarded


def main() -> int:
    parser = argparse.ArgumentParser(description="Sample text from a run.")
    parser.add_argument("run", help="a run folder, or its name under runs/")
    parser.add_argument("--prompt", default="", help="text to go on from; empty begins a document")
    parser.add_argument(
        "--tokens", type=int, default=200, help="at most so many; the end of the document is earlier"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token each time"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="draw from the likeliest tokens of this much mass"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws: the same seed, the same text")
    parser.add_argument("--step", type=int, help="the checkpoint of this step; by default the newest")
    return guarded(lambda: sample(parser.parse_args()))


def sample(args: argparse.Namespace) -> None:
    from pydantic import ValidationError

    import llmtrain
    from llmtrain import philox
    from llmtrain.errors import ConfigError
    from llmtrain.nn.generate import Sampling, generate
    from llmtrain.types import BOS, Visibility

    if args.tokens < 0:
        raise ConfigError(f"--tokens {args.tokens}: must not be negative")
    try:
        sampling = Sampling(temperature=args.temperature, top_p=args.top_p)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    loaded = llmtrain.load(args.run, step=args.step)
    if not loaded.objective.continues:
        raise ConfigError(
            f"{args.run} was trained with {type(loaded.objective).__name__}, which does not continue text"
        )
    ids = [BOS, *loaded.tokenizer.encode(args.prompt).tolist()]
    rng = philox.generator(args.seed, "generate")
    n_reserved = loaded.tokenizer.n_reserved
    made = generate(
        loaded.model,
        ids,
        n_tokens=args.tokens,
        n_reserved=n_reserved,
        sampling=sampling,
        rng=rng,
        prefix=len(ids) if loaded.objective.sees is Visibility.PREFIX else 0,
    )
    print(args.prompt + loaded.tokenizer.decode(made))


if __name__ == "__main__":
    raise SystemExit(main())
