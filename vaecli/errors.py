"""The errors that a user is meant to see: one sentence of what happened, one of what to do.

Every other exception is a bug and keeps its traceback. The border in `console.process` turns these into
one line on stderr and an exit code.
"""


class VaeError(Exception):
    """An expected failure that took the checkpoint, the data or the disk to see: exit 1."""

    exit_code = 1


class CheckpointError(VaeError):
    """A weights or state file that cannot be trusted."""


class DataError(VaeError):
    """A data set or an image that is missing or cannot be read."""


class UsageError(VaeError):
    """Wrong usage, judged from the command line alone (or against a run's own settings): exit 2."""

    exit_code = 2


class DivergedError(VaeError):
    """A training that ran into numbers that are not finite, as `what` says: exit 3."""

    exit_code = 3

    def __init__(self, what: str) -> None:
        super().__init__(
            f"Training diverged: {what}. Begin anew with a smaller --lr or --beta, and --overwrite or another -o."
        )


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. Not an `Exception`, so nothing swallows it on its way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
