"""Measure a run: ``python scripts/evaluate.py RUN tasks=[suffix,cloze] [KEY=VALUE ...]``.

Tasks of ours: suffix, cloze, pseudo_likelihood on texts=PATH (or the run's validation text); perplexity, minimal_pairs,
choice on file=PATH. All others are tasks of lm-eval. The keys are those of configs/evaluation/quickstart.yaml.
"""

import argparse
import sys

from llmtrain.cli import guarded


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="a run folder, or its name under runs/")
    parser.add_argument("words", nargs="*", metavar="key=value", help="as in tasks=perplexity file=book.txt")
    args = parser.parse_args()
    return guarded(lambda: measure(args.run, args.words))


def measure(run: str, words: list[str]) -> None:
    from pathlib import Path

    import llmtrain
    from llmtrain.checkpoint import find, newest
    from llmtrain.config import to_plain
    from llmtrain.data.prepare import prepare
    from llmtrain.evaluation.evaluate import evaluate
    from llmtrain.evaluation.saved import NAME, Evaluated, rows_of, write_evaluation
    from llmtrain.evaluation.settings import Evaluation
    from llmtrain.evaluation.subject import Subject
    from llmtrain.evaluation.table import table
    from llmtrain.evaluation.texts import own_texts
    from llmtrain.loading import folder_of
    from llmtrain.sweep.load import asked_in

    asked, _ = asked_in([f"evaluation.{word}" for word in words], "evaluation", Evaluation)
    loaded = llmtrain.load(run, step=asked.step)
    folder = folder_of(run)
    checkpoint = newest(folder) if asked.step is None else find(folder, step=asked.step)
    assert checkpoint is not None, "a run that was loaded has a checkpoint"
    subject = Subject(loaded.model, loaded.objective, loaded.tokenizer, loaded.config.seq_len)
    numbers = evaluate(
        subject,
        asked,
        lambda: own_texts(folder, prepare(loaded.config.data, loaded.config.tokenizer), subject.tokenizer),
    )
    evaluated = Evaluated(
        run=folder.name,
        checkpoint=checkpoint.name,
        objective=type(loaded.objective).__name__,
        seq_len=subject.seq_len,
        tokenizer_hash=subject.tokenizer.hash,
        asked=to_plain(asked),
        rows=rows_of(numbers),
    )
    out = folder if asked.out is None else Path(asked.out)
    write_evaluation(out, evaluated, numbers)
    print(table(evaluated.rows))
    print(out / NAME)


if __name__ == "__main__":
    sys.exit(main())
