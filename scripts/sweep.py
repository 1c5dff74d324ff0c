"""Plan and run a sweep: ``python scripts/sweep.py sweep=quickstart [sweep.KEY=VALUE ...] [key=value ...]``.

Words that begin with ``sweep`` are the sweep's own (configs/sweep/), all others are words of train.py for every cell.
The same command again skips what is finished and goes on with what was interrupted.
"""

import argparse
import dataclasses
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
    parser.add_argument(
        "--status",
        action="store_true",
        help="show how far each cell is: live on a terminal while the sweep runs",
    )
    parser.add_argument(
        "--force", action="store_true", help="fit although a best learning rate may lie beyond those tried"
    )
    parser.add_argument(
        "--prior",
        metavar="FIT|PAPER",
        help="the law that the forecast believes: a folder with a fit, or "
        "hoffmann2022, besiroglu2024, muennighoff2023; without it, that of sweep.prior",
    )
    args = parser.parse_intermixed_args()
    return guarded(lambda: sweep(args))


def sweep(args: argparse.Namespace) -> None:
    from llmtrain.sweep.load import sweep_from

    asked = sweep_from(args.words)
    if args.prior is not None:
        from llmtrain.sweep.forecast import prior_from

        asked = dataclasses.replace(asked, prior=prior_from(args.prior, asked.prior))
    if args.status:
        from llmtrain.sweep.progress import status, watch

        if sys.stdout.isatty():
            watch(asked)
        else:
            print(status(asked))
        return
    from llmtrain.sweep.question import answer, planned

    plan = planned(asked, startup=time.process_time())
    if not args.dry_run:
        answer(asked, plan, force=args.force)


if __name__ == "__main__":
    sys.exit(main())
