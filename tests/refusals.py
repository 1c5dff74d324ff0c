"""What a command says, and the one line with which it refuses bad data."""

import pytest

from llmtrain import cli


def command(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    code = cli.main(list(words))
    return code, capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line with which a command that meets bad data ends."""
    code, said = command(capsys, *words)
    assert code == 3
    *before, line = said.splitlines()
    assert line.startswith("error: ") and not any("error" in earlier for earlier in before)
    return line
