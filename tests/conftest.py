"""What every test shares: one thread, so that the suite takes the same time and gives the same bits everywhere."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say in a machine-readable report which faults a test is about."""
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", " ".join(mark.args)))
