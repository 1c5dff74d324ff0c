"""The one line that answers words which make no run."""

import pytest

from llmtrain.compose import run_from
from llmtrain.errors import ConfigError


def refused(*words: str) -> str:
    """The one line that answers ``words``."""
    with pytest.raises(ConfigError) as error:
        run_from(words)
    assert "\n" not in str(error.value)
    return str(error.value)
