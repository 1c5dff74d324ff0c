"""How long scaling-law fits take: ``python scripts/bench_fit.py [CSV --n COLUMN --c COLUMN --loss COLUMN]``.

On one thread. Without a table it fits 240 runs of a planted law, as many as Hoffmann et al. 2022 fitted.
Each line has its target.
"""

import os
import sys

os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from llmtrain.cli import guarded


def main() -> int:
    return guarded(lambda: bench(sys.argv[1:]))


def bench(words: list[str]) -> None:
    import subprocess
    import tempfile
    import time
    from pathlib import Path

    import numpy as np

    from llmtrain.scaling import Columns, Method, fit, read
    from llmtrain.scaling.arguments import Parser, add_columns, columns_from

    parser = Parser(description="Time scaling-law fits on one thread.", allow_abbrev=False)
    parser.add_argument("source", nargs="?", help="a CSV file; without it, 240 planted runs")
    add_columns(parser)
    parser.add_argument("--drop-highest-loss", type=int, default=0, metavar="K")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        table, columns = Path(folder) / "planted.csv", Columns(n="n", c="c", loss="loss")
        if args.source:
            table, columns = Path(args.source), columns_from(args)
        else:
            table.write_text(planted(), encoding="utf-8")
        [points] = read(table, columns)
        point = Method(delta=1e-3, drop_highest_loss=args.drop_highest_loss, bootstrap=0)
        resampled = Method(delta=1e-3, drop_highest_loss=args.drop_highest_loss, bootstrap=4000)
        fit(points, point)  # what is loaded once is not counted
        alone, found = timed(lambda: fit(points, point))
        both, _ = timed(lambda: fit(points, resampled))
        many = {key: np.resize(column, 1000) for key, column in points.x.items()}
        bands, _ = timed(lambda: found.law.bands(many, 0.95))
        given = {"n": columns.n, "c": columns.c, "d": columns.d, "loss": columns.loss}
        options = [word for name, value in given.items() if value for word in (f"--{name}", value)]
        command = [
            sys.executable,
            str(Path(__file__).with_name("fit.py")),
            str(table),
            *options,
            "--delta",
            "1e-3",
        ]
        command += ["--drop-highest-loss", str(args.drop_highest_loss), "--out", str(Path(folder) / "out")]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
    print(f"{len(found.points)} points")
    for what, seconds, target in (
        ("point fit with its interval", alone, 0.3),
        ("4,000 resamples", both - alone, 5.0),
        ("1,000 bands", bands, 2.0),
        ("fit.py, start to report", whole, 12.0),
    ):
        print(f"{what:<28} {seconds:8.3f} s   target {target:g} s")


def timed(work):  # type: ignore[no-untyped-def]
    import time

    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def planted() -> str:
    import numpy as np

    from llmtrain.scaling.forms import FORMS
    from llmtrain.scaling.published import LAWS

    rng = np.random.default_rng(0)
    c = np.repeat(np.geomspace(1e18, 1e22, 16), 15)
    n = 0.35 * (c / 6) ** 0.49 * np.tile(np.geomspace(1 / 6, 6, 15), 16)
    loss = FORMS["chinchilla"].predict(LAWS["besiroglu2024"], {"n": n, "d": c / (6 * n)})
    loss = loss * np.exp(0.007 * rng.standard_t(4, len(loss)))
    rows = [f"{a!r},{b!r},{y!r}" for a, b, y in zip(n.tolist(), c.tolist(), loss.tolist(), strict=True)]
    return "n,c,loss\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
