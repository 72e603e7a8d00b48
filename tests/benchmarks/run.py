"""`make bench`: vae, the tutorial's loop and pythae on the same images, side by side in the same run.

Every contender is a process of its own, because the allocator is set for a whole process. They take
turns at each task, so that a slow minute of the machine falls on all of them; what counts is the
ratio of medians. The table goes to stdout, and with all single times into a JSON file.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing as mp
import os
import platform
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TASKS = {"train": "training epoch", "test": "test pass", "encode": "encode", "sample": "sample"}
FULL = {"train": 60_000, "test": 10_000, "sample": 10_000, "rounds": 3}
QUICK = {"train": 2_000, "test": 2_000, "sample": 1_000, "rounds": 3}
WARM_UP = 300  # images


def contend(pipe: Connection, name: str, sizes: dict[str, int], device: str) -> None:
    """A contender's process: it does a task whenever it is told to, and answers with the seconds it took."""
    import torch
    from contenders import CONTENDERS

    from vaecli import data

    where = torch.device(device)
    splits = [data.load("mnist", split, None, lambda text: None) for split in ("train", "test")]

    def cut(train: int, test: int, samples: int) -> Any:
        parts = [
            data.Split(split.images[:count], None if split.labels is None else split.labels[:count], split.class_names)
            for split, count in zip(splits, (train, test), strict=True)
        ]
        return CONTENDERS[name](*parts, samples, where)

    small = cut(WARM_UP, WARM_UP, WARM_UP)
    for task in TASKS:
        getattr(small, task)()
    del small
    contender = cut(sizes["train"], sizes["test"], sizes["sample"])
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        began = time.perf_counter()
        getattr(contender, task)()
        if where.type != "cpu":
            torch.accelerator.synchronize()
        pipe.send(time.perf_counter() - began)
    pipe.send(torch.cuda.max_memory_allocated() if where.type == "cuda" else peak_memory())


def peak_memory() -> int:
    """Bytes that this process held at most."""
    with contextlib.suppress(OSError):  # Linux; its `ru_maxrss` begins with the peak of the parent
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(names: list[str], sizes: dict[str, int], device: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Seconds of each task, contender and round, and the peak memory of each contender in bytes."""
    spawn = mp.get_context("spawn")
    workers = {}
    for name in names:  # one after the other, so that no start-up disturbs another's warm-up
        here, there = spawn.Pipe()
        spawn.Process(target=contend, args=(there, name, sizes, device), daemon=True).start()
        there.close()  # or a worker that dies would leave this one waiting
        workers[name] = here
        here.recv()
    seconds: dict[str, dict[str, list[float]]] = {task: {} for task in TASKS}
    for _ in range(sizes["rounds"]):
        for task in TASKS:
            for name, pipe in workers.items():
                if task != "train" and name == "vae bf16":
                    continue  # float32 always, so it is the other vae's number
                pipe.send(task)
                seconds[task].setdefault(name, []).append(pipe.recv())
                print(f"{name:10} {task:6} {seconds[task][name][-1]:8.2f} s", file=sys.stderr)
    for pipe in workers.values():
        pipe.send(None)
    return seconds, {name: pipe.recv() for name, pipe in workers.items()}


def matmul_rate(device: str, bf16: bool) -> float:
    """FLOP a second of a large matrix product: what the hardware gives at best."""
    import torch

    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    times: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        times.append(time.perf_counter() - began)
    return 2.0 * size**3 / statistics.median(times[2:])


def flops() -> dict[str, float]:
    """FLOP an image of each task, counted by torch on the plain layers."""
    import torch
    from contenders import Z_DIM, PlainVAE
    from torch.utils.flop_counter import FlopCounterMode

    model, x = PlainVAE(), torch.rand(10, 1, 28, 28)

    def count(work: Any) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        total: int = counter.get_total_flops()
        return total / len(x)

    return {
        "train": count(lambda: model(x)[0].sum().backward()),
        "test": count(lambda: model(x)),
        "encode": count(lambda: model.encode(x)),
        "sample": count(lambda: model.decode(torch.rand(len(x), Z_DIM))),
    }


def table(seconds: dict[str, Any], sizes: dict[str, int], work: dict[str, float], rates: dict[str, float]) -> list[Any]:
    """A row for each task and contender."""
    rows = []
    for task, times in seconds.items():
        images = sizes["train" if task == "encode" else task]
        first = statistics.median(next(iter(times.values())))
        for name, all_seconds in times.items():
            median = statistics.median(all_seconds)
            rows.append(
                {
                    "task": task,
                    "contender": name,
                    "images": images,
                    "seconds": median,
                    "spread": (max(all_seconds) - min(all_seconds)) / median,
                    "images_per_second": images / median,
                    "speedup": first / median,
                    "share_of_matmul": work[task] * images / median / rates["bf16" if "bf16" in name else "fp32"],
                }
            )
    return rows


def show(rows: list[Any], memory: dict[str, int], about: dict[str, Any]) -> str:
    """The table as Markdown, which a terminal and a README both show."""
    lines = [
        f"{about['processor']}, {about['threads']} threads on {about['cores'] or '?'} cores; {about['device']}; "
        f"torch {about['torch']}, Python {about['python']}; medians of {about['rounds']} interleaved runs, z_dim 4, "
        f"batches of 100. `--precision auto` is {about['auto']} here.",
        "",
        "| task | | seconds | spread | images/s | of the tutorial's speed | of the matmul rate |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {TASKS[row['task']]}, {row['images']:,} images | {row['contender']} | {row['seconds']:.3g} | "
            f"{row['spread']:.0%} | {row['images_per_second']:,.0f} | {row['speedup']:.2f} | "
            f"{row['share_of_matmul']:.0%} |"
        )
    peaks = ", ".join(f"{name} {peak / 1e6:,.0f} MB" for name, peak in memory.items())
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in about["matmul"].items())
    return "\n".join([*lines, "", f"Peak memory: {peaks}. Matmul rate: {rates}."])


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []  # macOS has none
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int | None:
    """Of how many cores this process may use threads, where the system tells it: two of one core are no two cores."""
    try:
        siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        return len({Path(siblings.format(cpu)).read_text() for cpu in os.sched_getaffinity(0)})
    except (AttributeError, OSError):  # macOS has no affinity, some sandboxes show no topology
        return None


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few thousand images, within 2 minutes")
    parser.add_argument("--bf16", action="store_true", help="measure training in bf16, also where auto is fp32")
    parser.add_argument("-o", "--output", help="outputs/bench.json, or bench-quick.json")
    arguments = parser.parse_args()

    import torch

    from vaecli import data
    from vaecli.runtime import choose_device, choose_precision

    data.load("mnist", "test", None, print)  # download, before anything is measured
    device = choose_device("auto")
    auto = choose_precision("auto", device)
    sizes = QUICK if arguments.quick else FULL
    names = ["tutorial", "vae fp32"] + ["vae bf16"] * (auto == "bf16" or arguments.bf16)
    if importlib.util.find_spec("pythae"):
        names.append("pythae")
    else:
        print("pythae is not installed: pip install '.[bench]'", file=sys.stderr)
    # Only what is measured: without hardware for bf16, seven of its products took 6 minutes (Zen 3, torch 2.14).
    rates = {"fp32": matmul_rate(device.type, bf16=False)}
    if "vae bf16" in names:
        rates["bf16"] = matmul_rate(device.type, bf16=True)
    seconds, memory = measure(names, sizes, str(device))
    rows = table(seconds, sizes, flops(), rates)
    about = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "rounds": sizes["rounds"],
        "auto": auto,
        "matmul": rates,
    }
    print(show(rows, memory, about))
    output = Path(arguments.output or f"outputs/bench{'-quick' * arguments.quick}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    record = {"about": about, "rows": rows, "seconds": seconds, "peak_memory": memory}
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"All single times are in {os.fspath(output)}", file=sys.stderr)


if __name__ == "__main__":
    main()
