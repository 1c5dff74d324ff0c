"""A fit against runs that it never saw: ``python scripts/verify.py DIR RUNS_OR_CSV``."""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from llmtrain.cli import guarded


def main() -> int:
    return guarded(lambda: verify(sys.argv[1:]))


def verify(words: list[str]) -> None:
    from pathlib import Path

    from llmtrain.scaling import read, read_fit, verify
    from llmtrain.scaling.arguments import Parser, add_columns, columns_from
    from llmtrain.scaling.read import the_series
    from llmtrain.scaling.saved import write_json
    from llmtrain.scaling.summary import verified
    from llmtrain.scaling.verify import NAME

    parser = Parser(
        description="Compare a fit's predictions with runs that it never saw. Columns are the fit's unless given.",
        allow_abbrev=False,
    )
    parser.add_argument("fit", metavar="DIR", help="the folder that scripts/fit.py wrote")
    parser.add_argument("source", metavar="RUNS_OR_CSV", help="a folder with runs in it, or a CSV file")
    parser.add_argument("--of", metavar="SERIES", help="which series, of a fit of several")
    add_columns(parser)
    args = parser.parse_args(words)
    saved = read_fit(args.fit, args.of)
    columns = saved.columns_with(columns_from(args))
    points = the_series(read(args.source, columns), saved.about.series)
    found = verify(saved, points)
    path = Path(args.fit) / NAME
    write_json(path, found.plain)
    print(verified(found))
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
