"""Write a run as a folder that others open: ``python scripts/export.py RUN OUT``."""

import argparse

from llmtrain.cli import guarded


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write a run as a folder that transformers opens, or sentence-transformers a contrastive one."
    )
    parser.add_argument("run", help="a run folder, or its name under runs/")
    parser.add_argument("out", help="the folder to write, which must not exist")
    parser.add_argument("--step", type=int, help="the checkpoint of this step; by default the newest")
    return guarded(lambda: export(parser.parse_args()))


def export(args: argparse.Namespace) -> None:
    from pathlib import Path

    import llmtrain
    from llmtrain.errors import ConfigError
    from llmtrain.loading import folder_of
    from llmtrain.run_folder import TOKENIZER

    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ConfigError("export needs transformers: pip install -e .[export]") from None
    from llmtrain.export.folder import Trained
    from llmtrain.export.folder import export as write

    loaded = llmtrain.load(args.run, step=args.step)
    trained = Trained(
        cfg=loaded.config.sized(loaded.tokenizer.vocab_size),
        model=loaded.model,
        objective=loaded.objective,
        tokenizer=loaded.tokenizer,
        tokenizer_folder=folder_of(args.run) / TOKENIZER,
        seq_len=loaded.config.seq_len,
    )
    report = write(trained, Path(args.out))
    said = f"{report.architecture}, opened by {report.opens}; largest difference {report.difference:.1e}"
    print(f"{args.out}: {said}")
    if report.note:
        print(report.note)


if __name__ == "__main__":
    raise SystemExit(main())
