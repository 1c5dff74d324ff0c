"""Plan and run a sweep: ``python scripts/sweep.py sweep=quickstart [sweep.KEY=VALUE ...] [key=value ...]``.

Words that begin with ``sweep`` are the sweep's own (configs/sweep/), all others are words of train.py for every cell.
The same command again skips what is finished and goes on with what was interrupted.
"""

import argparse
import sys
import time

from llmtrain.cli import guarded


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="sweep=NAME, sweep.KEY=VALUE, words of train.py"
    )
    parser.add_argument("--dry-run", action="store_true", help="print and write the plan, and stop")
    parser.add_argument("--status", action="store_true", help="print how far each cell is, and stop")
    parser.add_argument(
        "--force", action="store_true", help="fit although a best learning rate may lie beyond those tried"
    )
    args = parser.parse_intermixed_args()
    return guarded(lambda: sweep(args))


def sweep(args: argparse.Namespace) -> None:
    from llmtrain.sweep.load import sweep_from

    asked = sweep_from(args.words)
    if args.status:
        from llmtrain.sweep.question import status

        print(status(asked))
        return
    from llmtrain.sweep.question import answer, planned

    plan = planned(asked, startup=time.process_time())
    if not args.dry_run:
        answer(asked, plan, force=args.force)


if __name__ == "__main__":
    sys.exit(main())
