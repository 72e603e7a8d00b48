"""Where a training step's time goes on a GPU: `.venv/bin/python tests/benchmarks/step.py [--trace FILE]`.

A line for each precision: the first epoch, which records the graph; a later one; a replay of the graph
alone; what it takes to launch one, which must stay below; and how many kernels it holds. The trace
lists these, with start, gap and duration in microseconds. Before them the test pass.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vaecli import data, engine
from vaecli.runtime import be_exact
from vaecli.schedule import Schedule
from vaecli.training import Trainer

Z_DIM, BATCH, REPLAYS = 4, 100, 300


def seconds(work: Callable[[], Any], times: int = 1) -> tuple[float, float]:
    """Of one time: until all were launched, and until all were done."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return (launched - began) / times, (time.perf_counter() - began) / times


def kernels(replay: Callable[[], Any]) -> list[Any]:
    """The kernels of one replay among three, in the order of their start."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            replay()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
    events.sort(key=lambda event: event.time_range.start)
    return events[len(events) // 3 : len(events) // 3 * 2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", help="a text file for the kernels of a step")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This needs a CUDA device.")
    cuda = torch.device("cuda")
    be_exact(cuda)
    train, test = (data.load("mnist", split, None, print).images.to(cuda) for split in ("train", "test"))
    model = engine.prepare(engine.new_model(Z_DIM, 0), cuda)
    passes = [seconds(partial(engine.evaluate, model, test, seed=0, device=cuda))[1] for _ in range(6)]
    print(f"test pass: first {passes[0]:.2f} s, then {min(passes) * 1e3:.1f} ms")
    lines = []
    for bf16 in (True, False):
        model = engine.prepare(engine.new_model(Z_DIM, 0), cuda)
        trainer = Trainer(model, train, schedule=Schedule(1e-3), batch_size=BATCH, bf16=bf16)
        epochs = [seconds(partial(trainer.epoch, epoch, 0, log_interval=200))[1] for epoch in (1, 2, 3, 4)]
        graph, times = trainer._by_hand, []
        assert graph
        for _ in range(3):
            graph._rewind()  # an epoch has 600
            times.append(seconds(graph.step, REPLAYS))
        launch, done = min(times, key=lambda both: both[1])
        found = kernels(graph.step)
        name = "bf16" if bf16 else "fp32"
        print(
            f"{name}: first epoch {epochs[0]:.2f} s, then {min(epochs[1:]) * 1e3:.0f} ms; step {done * 1e6:.0f} us, "
            f"its launch {launch * 1e6:.0f} us; {len(found)} kernels"
        )
        end = found[0].time_range.start
        for event in found:
            span = event.time_range
            at, gap, took = span.start - found[0].time_range.start, span.start - end, span.end - span.start
            lines.append(f"{name} {at:8.2f} gap {gap:6.2f} took {took:6.2f} {event.name}\n")
            end = span.end
    if arguments.trace:
        with open(arguments.trace, "w") as stream:
            stream.writelines(lines)


if __name__ == "__main__":
    main()
