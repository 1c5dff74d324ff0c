"""What a fit says of a larger run: ``python scripts/predict.py DIR --flops C``, or ``--n N --d D``."""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from llmtrain.cli import guarded


def main() -> int:
    return guarded(lambda: predict(sys.argv[1:]))


def predict(words: list[str]) -> None:
    from pathlib import Path

    from llmtrain.scaling import predict, read_fit
    from llmtrain.scaling.arguments import Parser
    from llmtrain.scaling.predict import seal
    from llmtrain.scaling.summary import predicted

    parser = Parser(description="Predict a run's loss from a fit, with its interval.", allow_abbrev=False)
    parser.add_argument("fit", metavar="DIR", help="the folder that scripts/fit.py wrote")
    parser.add_argument("--flops", type=float, help="of the best run that they buy")
    parser.add_argument("--n", type=float, help="parameters, counted as in the fit")
    parser.add_argument("--d", type=float, help="tokens, or pairs")
    parser.add_argument("--experts", type=float, help="their number, for a fit of --form clark")
    parser.add_argument(
        "--unique", type=float, help="unique tokens, for a fit of --form data_constrained; all by default"
    )
    parser.add_argument("--series", help="which, of a fit of several")
    parser.add_argument("--out", metavar="DIR", help="where prediction.json goes (the fit's own folder)")
    parser.add_argument("--force", action="store_true", help="write over another prediction that is there")
    args = parser.parse_args(words)
    saved = read_fit(args.fit, args.series)
    found = predict(saved, flops=args.flops, n=args.n, d=args.d, experts=args.experts, unique=args.unique)
    path = seal(Path(args.out) if args.out else saved.path.parent, found, force=args.force)
    print(predicted(found))
    print(path)


if __name__ == "__main__":
    raise SystemExit(main())
