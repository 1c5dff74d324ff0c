"""Train on several ranks of this machine, and keep them going: ``scripts/launch.py --ranks 2 -- train.py ...``."""

import argparse
import sys
from collections.abc import Callable

from llmtrain.launch.group import Limits
from llmtrain.launch.processes import starter
from llmtrain.launch.supervisor import Policy, supervise

ABOUT = """\
Starts the ranks of a run, watches them, and starts all of them again, from the newest checkpoint, when one dies or
hangs. Not started again: what a signal stops, mistakes in the config or the data, numbers that are not finite."""
EXAMPLES = """\
examples:
  python scripts/launch.py --ranks 2 -- train.py experiment=clm_dense trainer=ddp trainer.devices=2
  python scripts/launch.py --timeout 120 -- train.py experiment=clm_dense       one rank, kept going too

exit codes: 0 done   2 config   3 data   4 numbers not finite   5 storage   1 a bug
            75 killed or hung too often: may be tried again   130, 143 stopped by a signal (saved)"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        usage="%(prog)s [--ranks N] [options] -- train.py key=value ...",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    limits, policy = Limits(), Policy()
    made.add_argument(
        "--ranks", type=_whole(1), default=1, metavar="N", help="processes, as trainer.devices says (1)"
    )
    made.add_argument(
        "--timeout", type=_seconds, default=limits.step, metavar="S",
        help=f"seconds without a sign of life after which a rank hangs ({limits.step:g})",
    )  # fmt: skip
    made.add_argument(
        "--start-timeout", type=_seconds, default=limits.start, metavar="S",
        help=f"the same until its first step has ended, for what is compiled and built before ({limits.start:g})",
    )  # fmt: skip
    made.add_argument(
        "--grace", type=_seconds, default=limits.grace, metavar="S",
        help=f"seconds that the others have to end when one has failed, before they are killed ({limits.grace:g})",
    )  # fmt: skip
    made.add_argument(
        "--restarts", type=_whole(0), default=policy.restarts, metavar="N",
        help=f"how often to start again in a row without a step further than before ({policy.restarts})",
    )  # fmt: skip
    made.add_argument(
        "--pause", type=_seconds, default=policy.pause, metavar="S",
        help=f"seconds before a restart, doubled while it leads nowhere ({policy.pause:g})",
    )  # fmt: skip
    made.add_argument("command", nargs=argparse.REMAINDER, help="what each rank runs, after --")
    return made


def main() -> int:
    args = parser().parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        print(
            "error: nothing to run: give it after --, as in -- train.py experiment=clm_dense", file=sys.stderr
        )
        return 2
    limits = Limits(start=args.start_timeout, step=args.timeout, grace=args.grace)
    policy = Policy(restarts=args.restarts, pause=args.pause)
    try:
        return supervise(starter(command), ranks=args.ranks, limits=limits, policy=policy)
    except OSError as error:
        print(f"error: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 2


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
