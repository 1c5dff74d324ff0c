"""What a CPU run frees is kept for its next step, goes back when it is asked for, and is the user's to decide."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.path.exists("/proc/self/statm"),
    reason="what glibc keeps, read where Linux says it",
)

STEPS = """
import resource
import torch
from llmtrain.ops.memory import give_back, keep_freed

PAGE = resource.getpagesize()
MB = 1 << 20

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE

def step():
    blocks = [torch.ones(48 * MB // 4) for _ in range(2)]

done = keep_freed()
for _ in range(20):
    step()
before, faults = held(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
grown = held() - before
give_back("cpu")
print(int(done), faults * PAGE // MB, grown // MB, (before - held()) // MB)
"""


def results(**env: str) -> list[int]:
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, env=clean | env, check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def test_blocks_are_used_again_and_go_back_when_asked_for():
    done, taken, grown, returned = results()
    assert done == 1
    assert taken < 96  # MB of pages in five steps of 96 each
    assert grown < 96
    assert returned > 80


@pytest.mark.parametrize(
    "env",
    [{"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}, {"MALLOC_MMAP_THRESHOLD_": "1048576"}],
    ids=["tunables", "variable"],
)
def test_a_setting_of_the_users_is_left_alone(env):
    done, taken, *_ = results(**env)
    assert done == 0
    assert taken > 400  # blocks come anew at every step
