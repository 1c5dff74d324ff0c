"""The words of the scaling commands: options to what ``read`` and ``fit`` take, mistakes to one line."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from llmtrain.errors import ConfigError
from llmtrain.scaling.columns import Columns
from llmtrain.scaling.forms import FORMS
from llmtrain.scaling.method import TWO_STAGE, Method
from llmtrain.typos import nearest

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are errors of ours: one line, exit code 2, the nearest option named."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
            near = nearest(word, [option for action in self._actions for option in action.option_strings])
            message = f"there is no option {word}" + (
                f": did you mean {near[0]}?" if near else "; see --help"
            )
        raise ConfigError(message)


def add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "columns",
        "of a CSV file; one may be 1-NAME, 1/NAME or 1/NAME^2. A folder of runs has its own: --n fit|total|active|"
        "non_embedding, --c flops_model|flops_6nd, --loss score|bits_per_byte|the name of a held-out score",
    )
    group.add_argument("--n", metavar="COLUMN", help="parameters")
    group.add_argument("--c", metavar="COLUMN", help="FLOPs; with --n and without --d, D = C/6N")
    group.add_argument("--d", metavar="COLUMN", help="tokens, or pairs; without --c, C = 6ND")
    group.add_argument("--loss", metavar="COLUMN", help="the loss, or whatever is fitted")
    group.add_argument("--run", metavar="COLUMN", help="what is independent: rows of one run stay together")
    group.add_argument("--weight", metavar="COLUMN", help="of each row in the objective")
    group.add_argument("--experts", metavar="COLUMN", help="experts, for --form clark")
    group.add_argument("--unique", metavar="COLUMN", help="unique tokens, for --form data_constrained")
    group.add_argument(
        "--series", metavar="COLUMN", help="rows that differ here are fitted apart, and compared"
    )
    group.add_argument(
        "--where",
        metavar="CONDITION",
        action="append",
        default=[],
        help="which rows: NAME=VALUE, NAME!=VALUE, NAME<NUMBER, NAME>=NUMBER, ...; more than once, all hold",
    )


def columns_from(args: argparse.Namespace) -> Columns:
    names = ("n", "c", "d", "loss", "run", "weight", "experts", "unique", "series")
    given = {name: getattr(args, name) for name in names}
    return Columns(**given, where=tuple(args.where))


def add_method(parser: argparse.ArgumentParser) -> None:
    forms = ", ".join((*FORMS, *TWO_STAGE))
    group = parser.add_argument_group("method")
    group.add_argument("--form", default="chinchilla", help=f"{forms} (default: chinchilla)")
    group.add_argument("--residual", default="log", help="log (of ln loss, the default) or raw")
    group.add_argument(
        "--delta", default="auto", help="of Huber's loss; auto (1.345 sd, the default), or inf: least squares"
    )
    group.add_argument(
        "--drop-highest-loss", type=int, default=0, metavar="K", help="leave the K highest out"
    )
    group.add_argument(
        "--drop-worst-residual",
        type=int,
        default=0,
        metavar="K",
        help="fit, leave the K worst out, fit again",
    )
    group.add_argument(
        "--fix", action="append", default=[], metavar="NAME=VALUE", help="a parameter not fitted"
    )
    group.add_argument(
        "--frontier-bins", type=int, metavar="K", help="only the lowest of each of K bins of ln C"
    )
    group.add_argument(
        "--minimum", default="auto", help="of IsoFLOP curves: auto, quadratic, robust, akima or local"
    )
    group.add_argument("--bootstrap", type=int, default=4000, metavar="R", help="resamples (default: 4000)")
    group.add_argument("--seed", type=int, default=0, help="of the resamples")
    group.add_argument("--level", type=float, default=0.95, help="of every interval (default: .95)")
    group.add_argument(
        "--at", action="append", type=float, default=[], metavar="FLOPS", help="state the optimum there too"
    )


def method_from(args: argparse.Namespace) -> Method:
    delta = args.delta if args.delta == "auto" else _number("--delta", args.delta)
    return built(
        lambda: Method(
            form=args.form,
            residual=args.residual,
            delta=delta,
            drop_highest_loss=args.drop_highest_loss,
            drop_worst_residual=args.drop_worst_residual,
            fix=dict(_pair(word) for word in args.fix),
            frontier_bins=args.frontier_bins,
            minimum=args.minimum,
            bootstrap=args.bootstrap,
            seed=args.seed,
            level=args.level,
            at=tuple(args.at),
        )
    )


def built(make: Callable[[], T]) -> T:
    """What ``make`` returns; what the class refuses, as one line."""
    try:
        return make()
    except ValidationError as error:
        raise ConfigError("; ".join(_line(one) for one in error.errors()[:2])) from None


def _line(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name = str(error["loc"][0]).replace("_", "-")
    said = str(error["msg"]).removeprefix("Input should be ")
    return f"--{name} {error['input']}: it should be {said}"


def _pair(word: str) -> tuple[str, float]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"--fix {word}: write NAME=VALUE")
    return name, _number(f"--fix {name}=", value)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is no number") from None
