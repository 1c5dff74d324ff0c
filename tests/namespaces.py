"""Namespaces of a process's own, where the system gives it some."""

import ctypes

import pytest

from processes import forked

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000


def unshare(flags: int) -> None:
    """Leave namespaces of this process, which has one thread, for new ones."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) and libc.unshare(flags | CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def permitted(flags: int) -> None:
    """Skip where this system does not let a process have namespaces of its own."""

    def tries() -> int:
        try:
            unshare(flags)
        except OSError:
            return 1
        return 0

    with forked(tries) as child:
        code = child.ended()[0]
    if code:
        pytest.skip("this system gives a process no namespaces of its own (unshare)")
