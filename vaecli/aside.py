"""Streams of a GPU on which a step computes what its next product does not wait for."""

import contextlib
from collections.abc import Iterator

import torch

STREAMS = 6  # taking turns: with 3 a step took 5% longer, with 2 22% (before `fused`)


class Aside:
    """What is computed beside the current stream of a CUDA device; on any other, in its place."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        count = STREAMS if device.type == "cuda" else 0
        self.streams = [torch.cuda.Stream(device) for _ in range(count)]  # type: ignore[no-untyped-call]
        self._busy: list[torch.cuda.Stream] = []

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Aside: what is within may read what is computed outside before, or was before the last `join`.

        After the next one it may be read itself.
        """
        if not self.streams:
            yield
            return
        stream = self.streams[0]
        self.streams = [*self.streams[1:], stream]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        self._busy.append(stream)
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """Wait for all that is computed aside.

        Waiting for an event in the midst of it would do, but a graph with such events crashed when it was
        replayed (torch 2.11, driver 580).
        """
        for stream in self._busy:
            torch.cuda.current_stream(self._device).wait_stream(stream)
        self._busy.clear()
