"""What a user can have got wrong, or a machine failed at, and the exit code that says which.

Exit codes: 0 done, 2 configuration, 3 data, 4 numbers, 5 storage and other limits of the machine, 75 what the same
command may not meet again (EX_TEMPFAIL of sysexits.h), 130 and 143 stopped by a signal. ``cli.py`` prints such an
error as one line; anything else is a bug of ours and keeps its traceback.
"""

import signal

# by signal; SIGUSR1 is SLURM's warning
EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class UserError(Exception):
    """One clear line: what, where, why, and the way out."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A key, a value or a combination that cannot work."""

    exit_code = 2


class DataError(UserError):
    """A source, a document, a tokenizer or a shard that cannot be used."""

    exit_code = 3


class NumbersError(UserError):
    """A loss or a gradient that is not finite, or losses that stay far too high: the guard ended the run."""

    exit_code = 4


class StorageError(UserError):
    """A disk that is full, a folder in use, a checkpoint that is damaged, files or shared memory at their limit."""

    exit_code = 5


class Retry(UserError):
    """What the next try of the same command may not meet, such as memory that others took: a supervisor goes on."""

    exit_code = 75


class Unreachable(DataError):
    """Data on a network that cannot be reached now."""

    exit_code = 75


class Stopped(BaseException):
    """A signal ended the work. Nobody's failure: no ``except Exception`` takes it for one."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
