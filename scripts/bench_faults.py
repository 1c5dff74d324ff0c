"""The campaign of faults: kills of real runs over the whole grid, all tests of faults, and the table of both.

It can be started again and goes on where it was; another --out begins anew.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[1]


def parser() -> argparse.ArgumentParser:
    from llmtrain.campaign.grid import CELLS

    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--out", type=Path, default=Path("runs/campaign"), help="a folder for runs, logs and results"
    )
    made.add_argument("--kills", type=int, default=208, help="in all (208)")
    made.add_argument(
        "--in-writes", type=int, default=112, help="of them inside the writing of a checkpoint (112)"
    )
    made.add_argument(
        "--fresh", type=int, default=32, help="of them of a fresh interpreter, the others of forks (32)"
    )
    made.add_argument(
        "--cells", nargs="+", default=list(CELLS), choices=CELLS, metavar="CELL", help="all 16 by default"
    )
    made.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    made.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time (one a core)"
    )
    made.add_argument("--tests", default="tests", help="which tests; those marked fault are run")
    made.add_argument("--no-tests", action="store_true", help="kills alone, without a table")
    made.add_argument("--page", type=Path, help="the page whose table is replaced, as docs/reliability.md")
    return made


def main() -> int:
    args = parser().parse_args()
    home = args.out.resolve()
    home.mkdir(parents=True, exist_ok=True)
    from llmtrain.campaign.report import as_json, as_markdown, put_into, rows_of, summary

    series = kill(home, args)
    print(json.dumps(summary(series), indent=2), flush=True)
    if args.no_tests:
        return 0 if all(not one.failed and not one.differs and not one.torn for one in series) else 1
    report = as_json(rows_of(test(home, args), series), series)
    (home / "reliability.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(as_markdown(report))
    if args.page:
        put_into(args.page, as_markdown(report))
        args.page.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["tries"] == row["survived"] for row in report["faults"]) else 1


def kill(home: Path, args: argparse.Namespace) -> list:
    import torch

    torch.set_num_threads(1)
    from llmtrain import pretrain  # noqa: F401  what every fork needs
    from llmtrain.campaign.grid import words, write_text
    from llmtrain.campaign.series import series
    from llmtrain.compose import compose

    if not (home / "text.txt").exists():
        write_text(home)
    n, found = len(args.cells), []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("fork")) as pool:
        for cell in args.cells:
            compose(words(home, cell, "any"))
        shares = {
            pool.submit(
                series, home, cell, kills=_share(args.kills, i, n), in_writes=_share(args.in_writes, i, n),
                fresh=_share(args.fresh, i, n), seed=args.seed,
            ): cell
            for i, cell in enumerate(args.cells)
        }  # fmt: skip
        for done in as_completed(shares):
            one = done.result()
            found.append(one)
            wrong = [*one.failed, *one.differs]
            print(
                f"{one.cell}: {one.kills}, {one.ends} ends, {one.seconds:.0f} s, {wrong or 'nothing lost'}",
                flush=True,
            )
    return sorted(found, key=lambda one: args.cells.index(one.cell))


def test(home: Path, args: argparse.Namespace) -> Path:
    """The report of all tests that are marked with a fault; made once."""
    found = home / "tests.xml"
    if not found.exists():
        partial = home / "tests.partial.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "fault",
            "-n",
            str(args.jobs),
            "--dist",
            "loadfile",
            args.tests,
        ]
        subprocess.run([*command, f"--junitxml={partial}"], cwd=ROOT, check=False)
        partial.rename(found)
    return found


def _share(total: int, i: int, n: int) -> int:
    return total * (i + 1) // n - total * i // n


if __name__ == "__main__":
    raise SystemExit(main())
