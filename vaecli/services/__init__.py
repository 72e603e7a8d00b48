"""A module for each command, and what they share: plain typed functions, arguments in, a frozen result out.

They never print, exit or parse. What they have to tell while they work, an `Observer` hears.
"""

from vaecli.metrics import EpochRecord


class Observer:
    """Hears of a service's progress. This one keeps it to itself; `console.progress` has those that speak."""

    def note(self, text: str) -> None:
        """Something that a person should know, and maybe what to do; one line."""

    def begin(self, what: str, images: int, *, long: bool = False) -> None:
        """A pass over `images` images begins; 0: nobody knows yet over how many.

        `long`: it may take many minutes, so even a log should hear how far it is.
        """

    def advance(self, images: int, loss: float | None = None) -> None:
        """So many more images are done; `loss` (nats per image) of a training batch now and then."""

    def finish_epoch(self, record: EpochRecord, epochs: int, seconds_left: float) -> None:
        """An epoch of a training is complete and safe on disk."""

    def close(self) -> None:
        """No pass will begin any more; notes may still come."""
