"""From the words of a command line to a checked run: YAML and overrides composed, mistakes answered, classes built."""

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmtrain.config import to_plain
from llmtrain.errors import ConfigError
from llmtrain.overrides import Override, parse
from llmtrain.refusals import refusal
from llmtrain.targets import check_targets, resolve, targets
from llmtrain.typos import did_you_mean, nearest, nearest_keys

if TYPE_CHECKING:
    from llmtrain.run import Run

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parents[1] / "configs"
LENGTHS = ("steps", "tokens", "epochs", "flops", "tokens_per_param")  # of a run: exactly one is given


def choices(config: str = "train") -> dict[str, list[str]]:
    """The groups that ``config`` is made of, each with the names of its YAML files."""
    return {group: _natural(p.stem for p in (CONFIGS / group).glob("*.yaml")) for group in defaults(config)}


def defaults(config: str = "train") -> dict[str, str]:
    """The groups of ``config`` with the choice that stands when none is given."""
    listed = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: choice for item in listed if isinstance(item, dict) for group, choice in item.items()}


def compose(overrides: Sequence[str], *, config: str = "train") -> DictConfig:
    """The config that ``overrides`` make of ``configs/<config>.yaml``, interpolations resolved; nothing is imported.

    Raises ConfigError for an unknown key or choice with the nearest valid one, for a word that is no override, a value
    that must be given and is not, and a target that is not allowed.
    """
    groups = choices(config)
    given = parse(overrides, groups)
    values = [o for o in given if o.key not in groups or isinstance(o.value, dict)]
    chosen = {o.key: _choice(o, groups) for o in given if o not in values}
    words = (f"{group}={choice}" for group, choice in chosen.items())
    cfg, made_of = _compose(config, *words)
    # the same files without the values that the experiment sets in them
    files = (f"{group}={choice}" for group, choice in made_of.items() if group != "experiment")
    schema, _ = _compose(config, *files, "~experiment")
    _settle_experiment(cfg, schema, made_of, chosen)
    known = [*groups, *keys(cfg)]
    for override in values:
        _apply(cfg, override, known)
    # who gives a length means it, whatever length the YAML has: the others step back, unless they were given too
    if lengths := {o.key for o in values if o.key in LENGTHS and o.value is not None}:
        cfg |= {key: None for key in LENGTHS if key not in lengths}
    _label(cfg, schema, made_of)
    check_targets(cfg)
    try:
        composed = OmegaConf.create(cfg)
        OmegaConf.resolve(composed)
    except OmegaConfBaseException as error:
        referring = [key for key in keys(cfg) if "${" in str(_at(cfg, key.split(".")))]
        raise ConfigError(f"{referring[-1]}: {str(error).splitlines()[0]}") from None
    for key in sorted(OmegaConf.missing_keys(composed)):
        raise ConfigError(f"{_dotted(key)} must be given: add {_dotted(key)}=VALUE")
    return composed


def instantiate(cfg: DictConfig | Mapping[str, Any]) -> "Run":
    """Build the run that a composed or a saved config describes.

    Raises ConfigError in one line for whatever a class refuses: dotted key, what it got, what is allowed.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    check_targets(plain)
    from llmtrain.run import Run

    if resolve(plain.get("_target_", "")) is not Run:
        raise ConfigError(
            f"_target_={plain['_target_']} is not a run: at the root it must be llmtrain.run.Run"
        )
    run: Run = build(plain)
    return run


def build(plain: Any) -> Any:
    """The classes that a tree of plain data names, made from the inside out.

    Raises ConfigError in one line for a name that is not allowed, before anything is made, and for whatever a class
    refuses.
    """
    import hydra
    from hydra.errors import InstantiationException

    check_targets(plain)
    for key, target in targets(plain):
        resolve(target, key)
    try:
        made = hydra.utils.instantiate(plain, _convert_="all")
    except InstantiationException as error:
        raise refusal(error, plain) from None
    _refuse_truth_as_number(plain, to_plain(made))
    return made


def _refuse_truth_as_number(given: Any, made: Any, prefix: str = "") -> None:
    """Python, and pydantic with it, takes true for 1."""
    pairs = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    for name, value in pairs:
        kept = _at(made, [str(name)])
        if isinstance(value, bool) and isinstance(kept, int | float) and not isinstance(kept, bool):
            raise ConfigError(f"{prefix}{name}: got {str(value).lower()}, expected a number")
        _refuse_truth_as_number(value, kept, f"{prefix}{name}.")


def run_from(overrides: Sequence[str]) -> "Run":
    """The run that a command line describes, labelled with the choices it was made of."""
    return instantiate(compose(overrides))


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key below ``node`` that a user may set, items of lists by their number."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in pairs:
        if not re.fullmatch(r"_\w+_", str(name)):
            yield f"{prefix}{name}"
            yield from keys(value, f"{prefix}{name}.")


def _compose(config: str, *words: str) -> tuple[dict, dict[str, str]]:
    """Hydra's composition of the chosen files, and the choice that was made in each group."""
    plain, made_of = _composed(CONFIGS, config, words)
    return copy.deepcopy(plain), made_of


@cache
def _composed(folder: Path, config: str, words: tuple[str, ...]) -> tuple[dict, dict[str, str]]:
    # kept, since the cells of a sweep choose the same files again and again
    import hydra
    from hydra.errors import HydraException

    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            composed = hydra.compose(config, overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"configs/ cannot be composed: {_nearer(' '.join(str(error).split()))}") from None
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    made_of = plain.pop("hydra")["runtime"]["choices"]
    return plain, {group: made_of[group] for group in defaults(config) if group in made_of}


def _nearer(said: str) -> str:
    """What Hydra says of a file's defaults, with the nearest group or choice in the place of a list of all."""
    if found := re.match(r"In .*?: Could not find '(\w+)/(.+?)'", said):
        names = choices().get(found[1], [])
        return f"{found[0]}: {did_you_mean([f'{found[1]}/{n}' for n in nearest(found[2], names)], names)}"
    if found := re.match(r"In .*?: Could not override '(\w+)'", said):
        return f"{found[0]}: {did_you_mean(nearest(found[1], choices()), choices())}"
    return said


def _settle_experiment(
    cfg: dict, schema: dict, made_of: Mapping[str, str], chosen: Mapping[str, str]
) -> None:
    """Refuse what an experiment sets and no file has; where the user chose another file, leave it out and say so."""
    for parts in list(_unknown(cfg, schema)):
        key, group = ".".join(parts), parts[0]
        if group not in chosen or len(parts) == 1:
            near = nearest_keys(key, keys(schema))
            raise ConfigError(
                f"configs/experiment/{made_of['experiment']}.yaml sets an unknown key {key}: "
                f"{did_you_mean(near, schema)}"
            )
        *parents, leaf = parts
        value = _at(cfg, parents).pop(leaf)
        log.info("%s=%s has no %s: the experiment's %s is left out", group, chosen[group], key, value)


def _unknown(cfg: dict, schema: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Keys that ``cfg`` has and ``schema`` has not, in nodes that are of one class in both."""
    if "_target_" not in schema or cfg.get("_target_") != schema["_target_"]:
        return  # names of the user's own, or another class, which knows its fields itself
    for name, value in cfg.items():
        if name not in schema:
            yield (*path, name)
        elif isinstance(value, dict) and isinstance(schema[name], dict):
            yield from _unknown(value, schema[name], (*path, name))


def _choice(override: Override, groups: Mapping[str, list[str]]) -> str:
    group, value = override.key, override.value
    if override.removes:
        raise ConfigError(f"{group} cannot be removed: choose one of {', '.join(groups[group])}")
    if value not in groups[group]:
        if value and "," in value:
            raise ConfigError(f"{group}={value}: one command is one run, so give one choice")
        near = nearest(str(value), groups[group])
        meant = f"did you mean {group}={near[0]}? " if near else ""
        raise ConfigError(f"unknown choice {group}={value}: {meant}Choices: {', '.join(groups[group])}")
    return str(value)


def _apply(cfg: dict, override: Override, known: Sequence[str]) -> None:
    key, value = override.key, override.value
    dotted = _dotted(key)
    *parents, leaf = dotted.split(".")
    if re.fullmatch(r"_\w+_", leaf) and leaf != "_target_":
        raise ConfigError(f"{key}: {leaf} is not allowed in a config, only _target_ is")
    parent = _at(cfg, parents)
    names_are_free = (
        isinstance(parent, dict) and "_target_" not in parent
    )  # a mapping from names of the user's own
    if not names_are_free and not _has(parent, leaf):
        near = nearest_keys(dotted, known)
        raise ConfigError(f"unknown key {key}: {did_you_mean(near, _shown(cfg, parents))}")
    if dotted != key:
        raise ConfigError(f"{key}: items of a list are written with dots: {dotted}")
    if override.removes:
        if not names_are_free or leaf not in parent:
            raise ConfigError(
                f"~{key}: a key cannot be removed; set it, as in {key}=VALUE (null where that is allowed)"
            )
        del parent[leaf]
        return
    at = int(leaf) if isinstance(parent, list) else leaf
    old = parent[at] if _has(parent, leaf) else None
    if not (isinstance(old, dict) and "_target_" in old) or value is None:
        parent[at] = value
    elif isinstance(value, dict):
        for name, item in value.items():
            _apply(cfg, Override(f"{key}.{name}", item), known)
    else:
        inside = ", ".join(f"{key}.{name}" for name in old if name != "_target_")
        raise ConfigError(f"{key}={value}: {key} is set by the keys inside it: {inside}")


def _at(node: Any, parts: Sequence[str]) -> Any:
    """The node at a path; None where there is none."""
    for part in parts:
        if not _has(node, part):
            return None
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def _has(node: Any, name: str) -> bool:
    if isinstance(node, list):
        return name.isdecimal() and int(name) < len(node)
    return isinstance(node, dict) and name in node


def _shown(cfg: dict, parents: Sequence[str]) -> list[str]:
    """Valid keys beside a wrong one, where none is near: those of its parent, or of the root."""
    node = _at(cfg, parents)
    inside = node if isinstance(node, dict) else cfg
    prefix = "".join(f"{part}." for part in parents) if inside is node else ""
    if parents and parents[0] in (groups := choices()) and not set(inside) - {"_target_"}:
        return [f"{parents[0]}={name}" for name in groups[parents[0]]]  # the chosen file has no keys
    return [f"{prefix}{name}" for name in inside if not name.startswith("_")]


def _label(cfg: dict, schema: dict, made_of: Mapping[str, str]) -> None:
    """Name the run after the choices it is made of, where the user gave no name."""
    labels, model, size = cfg["labels"], cfg["model"], cfg["size"]
    # a dial that was turned further, or solves for a width, is named by the depth and width that come out
    by_dial = size == schema["size"] and size["d_model"] and not (model["n_layers"] or model["d_model"])
    found = {
        "experiment": made_of.get("experiment"),
        "objective": made_of.get("objective"),
        "architecture": made_of.get("model"),
        "size": made_of.get("size") if by_dial else None,
    }
    for name, choice in found.items():
        if labels[name] == schema["labels"][name]:
            labels[name] = choice


def _dotted(key: str) -> str:
    """``a[0].b`` as ``a.0.b``."""
    return re.sub(r"\[(\d+)\]", r".\1", key)


def _natural(names: Iterator[str]) -> list[str]:
    """Sorted, with numbers as numbers: d2 before d10."""
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
