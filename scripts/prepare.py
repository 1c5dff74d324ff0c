"""Prepare a corpus without training: ``python scripts/prepare.py data=text data.source.paths=[FILE] tokenizer=bytes``.

Takes the overrides of train.py; a run with the same data and tokenizer then starts at once.
"""

import json
import sys

from llmtrain.cli import guarded


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    return guarded(lambda: prepare_corpus(sys.argv[1:]))


def prepare_corpus(overrides: list[str]) -> None:
    from llmtrain.callbacks.display import preparing
    from llmtrain.compose import run_from
    from llmtrain.data.prepare import prepare

    run = run_from(overrides)
    with preparing(show=True) as progress:
        prepared = prepare(run.data, run.tokenizer, progress=progress)
    print(json.dumps(prepared.report, indent=2, ensure_ascii=False))
    print(f"{prepared.folder}: vocabulary {prepared.vocab.size}, corpus {prepared.fingerprint[:12]}")


if __name__ == "__main__":
    raise SystemExit(main())
