"""Finds what two streams do at once with the same memory, on a CPU that pretends to have them.

Lamport's happened-before with a clock for each stream: every operation is an event, what it reads and
writes is known from its schema, and two that touch the same bytes, one of them writing, must be ordered.
So must be whatever is freed: a CUDA stream gives the memory of its tensors away as soon as they have no
name, whoever else is still at them.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

MAIN = 0


@dataclass
class Access:
    """That one event touched these bytes of a storage."""

    stream: int
    time: int
    begin: int
    end: int
    writes: bool
    what: str


@dataclass
class Memory:
    """A storage, the stream whose it is, and what happened to it."""

    storage: StorageWeakRef
    owner: int
    accesses: list[Access] = field(default_factory=list)


class Races(TorchDispatchMode):
    """All operations within are watched; `found` says which are not ordered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stream, self.found = MAIN, list[str]()
        self._clocks: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._memory: dict[int, Memory] = {}

    def wait(self, stream: int, other: int) -> None:
        """Whatever `stream` does from now on is after all that `other` has done."""
        for each, time in self._clocks[other].items():
            self._clocks[stream][each] = max(self._clocks[stream][each], time)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._free()
        self._clocks[self.stream][self.stream] += 1
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        if operation.is_view:  # touches nothing
            return result
        schema = operation._schema
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
        for argument in schema.arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors(given.get(argument.name)):
                self._touch(tensor, writes, str(operation))
        for tensor in tensors(result):
            self._touch(tensor, True, str(operation))
        return result

    def _touch(self, tensor: Tensor, writes: bool, what: str) -> None:
        storage, size = tensor.untyped_storage(), tensor.element_size()
        weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        memory = self._memory.setdefault(storage._cdata, Memory(weak, self.stream))
        begin = tensor.storage_offset() * size
        spans = ((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = begin + (int(sum(spans)) + 1) * size if tensor.numel() else begin
        access = Access(self.stream, self._clocks[self.stream][self.stream], int(begin), int(end), writes, what)
        for earlier in memory.accesses:
            overlap = earlier.begin < access.end and access.begin < earlier.end
            if overlap and (writes or earlier.writes) and not self._before(earlier, self.stream):
                self.found.append(f"{what} after {earlier.what}")
        memory.accesses.append(access)

    def _before(self, earlier: Access, stream: int) -> bool:
        return earlier.time <= self._clocks[stream][earlier.stream]

    def _free(self) -> None:
        """Before an event: what has no name any more is memory that this stream may be about to take, if it owns it."""
        memories = self._memory.items()
        gone = [key for key, each in memories if each.owner == self.stream and each.storage.expired()]  # type: ignore[no-untyped-call]
        for key in gone:
            late = (access for access in self._memory.pop(key).accesses if not self._before(access, self.stream))
            self.found.extend(f"freed before {access.what}" for access in late)


def tensors(value: Any) -> Iterable[Tensor]:
    """The tensors among the arguments or results of an operation."""
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, Tensor)]


class Stream:
    """What stands for a CUDA stream."""

    def __init__(self, races: Races, number: int) -> None:
        self._races, self._number = races, number

    def wait_stream(self, other: "Stream") -> None:
        self._races.wait(self._number, other._number)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Within, everything is computed on this stream."""
        before, self._races.stream = self._races.stream, self._number
        yield
        self._races.stream = before
