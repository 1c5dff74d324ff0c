"""Plan and run a comparison: ``python scripts/compare.py comparison=quickstart [comparison.KEY=VALUE] [key=value]``.

Words that begin with ``comparison`` are its own (configs/comparison/), all others are words of train.py for every run.
The same command again skips what is finished and goes on with what was interrupted.
"""

import argparse
import shlex
import sys
import time

from llmtrain.cli import guarded


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="comparison=NAME, comparison.KEY=VALUE, words of train.py",
    )
    parser.add_argument("--dry-run", action="store_true", help="print and write the plan, and stop")
    parser.add_argument("--status", action="store_true", help="print how far each run is, and stop")
    args = parser.parse_intermixed_args()
    return guarded(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    from llmtrain.compare.load import contest_from

    contest = contest_from(args.words)
    if args.status:
        from llmtrain.compare.question import status

        print(status(contest))
        return
    from llmtrain.compare.question import planned

    plan = planned(contest, startup=time.process_time())
    if not args.dry_run:
        from llmtrain.compare.answer import answer

        answer(contest, plan, command=shlex.join(["python", "scripts/compare.py", *args.words]))


if __name__ == "__main__":
    sys.exit(main())
