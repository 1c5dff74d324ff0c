"""Pages that hold all that they show: one look, all text escaped, figures inside."""

import base64
from pathlib import Path
from typing import Any


def rendered(package: str, template: str, **values: Any) -> str:
    """A template of ``package``, which may extend and import those here. Text of users is escaped everywhere."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("llmtrain.scaling", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"g": _short, "percent": lambda v: "" if v is None else f"{100 * v:.2f}%"}
    return environment.get_template(template).render(**values)


def embedded(path: Path) -> str:
    """As an image inside the page: nothing in it can act on the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _short(value: float | int | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"
