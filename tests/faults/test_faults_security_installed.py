"""What is installed, on a machine or in an image, is of versions that are known, and what is banned is found."""

import re
import runpy
from collections.abc import Callable
from typing import Any

import pytest

from runs import REPO

# ---- F52: what is installed

GOOD = {"lightning": "2.6.6", "torch": "2.13.0", "safetensors": "0.8.0"}


@pytest.fixture(scope="module")
def doctor() -> dict[str, Any]:
    return runpy.run_path(str(REPO / "scripts" / "doctor.py"))


@pytest.mark.fault("F52")
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3", "2.5.0", "2.6.5"])
def test_a_banned_version_is_found(doctor: dict[str, Any], version: str) -> None:
    check: Callable[[dict[str, str]], list[str]] = doctor["banned"]
    assert check(GOOD) == []
    (line,) = check(GOOD | {"lightning": version})
    assert f"lightning {version}" in line and "pip install" in line
    assert check(GOOD | {"pytorch-lightning": version})


@pytest.mark.fault("F52")
def test_the_doctor_says_what_is_here_and_by_its_exit_code_whether_it_is_well(
    doctor: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor["main"]([]) == 0
    said = capsys.readouterr().out
    for word in (
        "python",
        "torch",
        "lightning",
        "precision",
        "attention",
        "scan",
        "experts",
        "disk",
        "wandb",
        "memory",
    ):
        assert re.search(rf"^\S* *{word}", said, re.M), word
    monkeypatch.setitem(doctor["main"].__globals__, "installed", lambda: GOOD | {"lightning": "2.6.3"})
    assert doctor["main"]([]) == 2
    assert "lightning 2.6.3" in capsys.readouterr().out


@pytest.mark.fault("F52")
def test_every_package_that_ci_installs_has_one_version_and_none_is_banned(doctor: dict[str, Any]) -> None:
    lines = [x for x in (REPO / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    pinned = dict(line.lower().split("==") for line in lines)
    assert doctor["banned"](pinned) == []
    project = (REPO / "pyproject.toml").read_text()
    named = re.findall(r'^    "([a-zA-Z0-9-]+)[><=]', project, re.M)
    assert not [n for n in named if n.lower() not in pinned and n.lower().replace("-", "_") not in pinned]


# ---- images


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_copies_what_is_there_runs_the_script_of_make_and_is_no_root(name: str) -> None:
    text = (REPO / "docker" / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    bases = [line[1] for line in lines if line[0] == "FROM"]
    assert bases and all(
        re.search(r":[\w.-]*\d+\.\d+", base) and not base.endswith("latest") for base in bases
    )
    for line in lines:
        if line[0] == "COPY":
            sources = [word for word in line[1:-1] if not word.startswith("--")]
            assert sources and all((REPO / source).exists() for source in sources), line
        assert line[0] != "ADD"
    (call,) = re.findall(r"sh scripts/setup\.sh (.+)", text)
    usage = re.search(r"# usage: setup\.sh (.+?)  ", (REPO / "scripts" / "setup.sh").read_text())
    assert usage
    least = len([word for word in usage[1].split() if not word.startswith("[")])
    assert least <= len(call.split("&&")[0].split()) <= len(usage[1].split())
    users = [line[1] for line in lines if line[0] == "USER"]
    assert users and users[-1] not in {"root", "0"}
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|SECRET|PASSWORD|API_KEY)", text, re.M)
    extras = re.findall(r"\.\[([\w,]+)\]", call)
    known = set(re.findall(r"^(\w+) = \[", (REPO / "pyproject.toml").read_text(), re.M))
    assert all(extra in known for group in extras for extra in group.split(","))


def test_what_is_no_part_of_an_image_is_left_out() -> None:
    left = (REPO / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "cache", "**/*.env"} <= set(left)
