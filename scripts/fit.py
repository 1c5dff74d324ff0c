"""Fit a scaling law: ``python scripts/fit.py FILE_OR_SWEEP --n COLUMN --c COLUMN --loss COLUMN --out DIR``."""

import os
import sys

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # thousands of small products, which threads only slow down

from llmtrain.cli import guarded


def main() -> int:
    return guarded(lambda: fit(sys.argv[1:]))


def fit(words: list[str]) -> None:
    from pathlib import Path

    from llmtrain.errors import ConfigError
    from llmtrain.scaling import read, study
    from llmtrain.scaling.arguments import Parser, add_columns, add_method, columns_from, method_from
    from llmtrain.scaling.summary import summary
    from llmtrain.sweep.edges import check_edges

    parser = Parser(description="Fit a scaling law to a CSV file or to a folder of runs.", allow_abbrev=False)
    parser.add_argument("source", metavar="FILE_OR_SWEEP", help="a CSV file, or a folder with runs in it")
    add_columns(parser)
    add_method(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where fit.json, report.html and figures/ go (a folder of runs: in its fit/)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="of a sweep: fit although a best learning rate may lie beyond those tried",
    )
    parser.add_argument("--no-report", action="store_true", help="write fit.json alone")
    args = parser.parse_args(words)
    if args.out is None and not Path(args.source).is_dir():
        raise ConfigError("give --out DIR, where the fit goes")
    out = Path(args.out) if args.out else Path(args.source) / "fit"
    if Path(args.source).is_dir():
        check_edges(Path(args.source), force=args.force)
    columns, method = columns_from(args), method_from(args)
    done = study(read(args.source, columns), method, columns)
    done.write(out)
    print(summary(done))
    if not args.no_report:
        from llmtrain.scaling.report import write_report

        write_report(done, out)
    print(f"\n{out / 'fit.json'}" + ("" if args.no_report else f", {out / 'report.html'}"))


if __name__ == "__main__":
    raise SystemExit(main())
