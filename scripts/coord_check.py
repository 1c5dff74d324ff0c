"""Try a parametrisation: ``python scripts/coord_check.py experiment=clm_dense parametrization.base_width=32``.

Trains small models for a few steps and prints how far every layer's output moves as width grows (and depth, with
parametrization=completep), beside the same under the standard parametrisation. Takes the overrides of train.py, and of
its own: check.widths=[64,128], check.depths=[4,8], check.seeds=4, check.steps=[1,5,10], check.tolerance=0.1,
check.rates=[...] (five or more: also trains check.rate_steps steps at each and finds the best), check.rate_seeds=2,
check.rate_rows=256, check.octaves=1, check.out=runs/coord_check (coord_check.json and figures).
"""

import sys

from llmtrain.cli import guarded


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    return guarded(lambda: check(sys.argv[1:]))


def check(words: list[str]) -> None:
    from llmtrain.callbacks.display import preparing
    from llmtrain.coordinates.check import question_from
    from llmtrain.coordinates.measure import ends, moves
    from llmtrain.coordinates.report import NAME, Found
    from llmtrain.coordinates.slopes import curves
    from llmtrain.coordinates.transfer import basins
    from llmtrain.data.prepare import prepare

    question = question_from(words)
    run, out = question.run, question.check.out
    run.trainer.configure()
    with preparing(show=True) as progress:
        prepared = prepare(run.data, run.tokenizer, progress=progress)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = Found(question, curves(moves(question, prepared, say)), basins(ends(question, prepared, say)))
    found.write(out)
    print(found.table())
    print(f"\n{out / NAME}")


if __name__ == "__main__":
    raise SystemExit(main())
