"""Files from strangers: whatever is in them, a reader gives its result or a VaeError, in little time and memory.

Real files are mutated at random, from seeds that are numbers, so a case that fails can be had again.
`SOAK_FUZZ=100000` asks for that many cases, each at most 2 seconds of the processor, and tells the
figures; without it there are 1,000.
"""

import gzip
import io
import json
import os
import random
import re
import resource
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import DIGITS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_checkpoint import join, split
from test_idx import idx_bytes

from vaecli import checkpoint, data, engine
from vaecli.codes import Codes, read_codes, write_codes
from vaecli.errors import VaeError
from vaecli.idx import IdxFile, is_idx
from vaecli.images import fit_all, read_image
from vaecli.metrics import read_metrics
from vaecli.run import read_config
from vaecli.services.resume import Trained

pytestmark = pytest.mark.soak

CASES = int(os.environ.get("SOAK_FUZZ", "1000"))
SOAKING = "SOAK_FUZZ" in os.environ
EXAMPLES = CASES // 10  # of all cases, those of hypothesis
MAX_SECONDS, MAX_MEGABYTES = 2.0, 300

CPU = torch.device("cpu")
Dress = Callable[[bytes], bytes]


def whole(content: bytes) -> bytes:
    return content


@dataclass(frozen=True)
class Reader:
    """What reads a kind of file: the name that the file must have, real contents, and the call.

    A form is what is mutated and how a file is made of it, so that damage gets past checksums.
    """

    name: str
    read: Callable[[Path], object]
    forms: list[tuple[bytes, Dress]]


# What the readers are fed with


def with_header(values: bytes) -> Dress:
    """The header of a safetensors file, its length put right."""
    return lambda header: struct.pack("<Q", len(header)) + header + values


def with_metadata(content: bytes) -> tuple[bytes, Dress]:
    header, values = split(content)

    def dress(text: bytes) -> bytes:
        return join(header | {"__metadata__": {"vae": text.decode(errors="replace")}}, values)

    return header["__metadata__"]["vae"].encode(), dress


def safetensors_forms(content: bytes) -> list[tuple[bytes, Dress]]:
    length = 8 + int.from_bytes(content[:8], "little")
    return [(content, whole), (content[8:length], with_header(content[length:])), with_metadata(content)]


def zipped(name: str, method: int = zipfile.ZIP_DEFLATED) -> Dress:
    def dress(content: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr(name, content)
        return buffer.getvalue()

    return dress


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def npz_forms(arrays: dict[str, np.ndarray], member: str) -> list[tuple[bytes, Dress]]:
    npy = saved(lambda stream: np.save(stream, arrays[member]))
    return [
        (saved(lambda stream: np.savez(stream, **arrays)), whole),  # type: ignore[arg-type]
        (saved(lambda stream: np.savez_compressed(stream, **arrays)), whole),  # type: ignore[arg-type]
        (npy, zipped(f"{member}.npy")),
    ]


def with_checksums(png: bytes) -> bytes:
    """The chunks of a PNG with the checksums that they should have."""
    fixed, place = bytearray(png[:8]), 8
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        body = png[place + 4 : place + 8 + length]
        fixed += png[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(fixed)


def picture_forms() -> list[tuple[bytes, Dress]]:
    grey = Image.effect_noise((40, 30), 90)
    colour = Image.merge("RGB", [grey] * 3)
    clear = Image.merge("RGBA", [grey] * 4)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [colour.rotate(90), colour]}
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (clear, "png", {"exif": exif}),
        (colour.convert("P"), "png", {"transparency": 3}),
        (deep, "png", {}),
        (colour, "png", more),
        (colour, "jpeg", {"exif": exif}),
        (colour, "jpeg", {"progressive": True}),
        (colour.convert("CMYK"), "jpeg", {}),
        (colour, "gif", more),
        (grey, "bmp", {}),
        (colour, "ppm", {}),
        (clear, "tiff", {"compression": "tiff_lzw", "exif": exif}),
        (colour, "tiff", {"compression": "jpeg"}),
        (grey.convert("1"), "tiff", {"compression": "group4"}),
        (colour, "tiff", {"compression": "tiff_deflate"} | more),
        (clear, "webp", {"lossless": True, "exif": exif}),
        (colour, "webp", more),
    ]
    contents = [(saved(lambda stream: image.save(stream, kind, **how)), kind) for image, kind, how in kinds]  # noqa: B023
    plain = b"P3 4 3 255 " + b"17 200 3 " * 12
    run_lengths = b"\x08\x07\0\0" * 3 + b"\x05\x01\0\x03abc\0\0\0\x08\x03\0\x01"
    header = struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + struct.pack("<IiiHHIIiiII", 40, 8, 5, 1, 8, 1, 0, 0, 0, 256, 0)
    run_length_bmp = b"BM" + header + bytes(range(256)) * 4 + run_lengths
    forms = [(content, with_checksums if kind == "png" else whole) for content, kind in contents]
    return [*forms, (plain, whole), (run_length_bmp, whole)]


def code_rows(form: Literal["csv", "jsonl"]) -> bytes:
    tables = [np.random.default_rng(seed).normal(size=(30, 2)).astype(np.float32) for seed in range(3)]
    block = Codes([f"{row}.png" for row in range(30)], [*range(29), None], *tables)
    return saved(lambda stream: write_codes(stream, form, iter([block]), "path", ()))


def idx_folder(changed: str) -> Callable[[Path], object]:
    """Reads a folder of IDX files, of which one is what the path holds."""

    def read(path: Path) -> data.Split:
        for file in DIGITS.iterdir():
            if not os.path.lexists(path.parent / file.name) and file.name != changed:
                (path.parent / file.name).symlink_to(file)
        return data.load(str(path.parent), "test", None, lambda text: None)

    return read


def as_input(path: Path) -> None:
    """An IDX file as `encode` reads it."""
    if is_idx(path):
        for block in IdxFile(path).blocks(1000):
            if block.ndim == 3 and block.dtype == np.uint8:
                fit_all(block)


def as_codes(path: Path) -> None:
    """A table of codes as `sample` reads it."""
    with open(path, "rb") as stream:
        for _ in read_codes(stream, str(path), 2, 10):
            pass


def load_state(path: Path) -> object:
    model = engine.new_model(2, 0)
    return checkpoint.load_state(str(path), model, torch.optim.Adam(model.parameters()))


@pytest.fixture(scope="session")
def readers(trained: Trained) -> list[Reader]:
    """Every reader of files that may come from strangers."""
    run = Path(trained.checkpoint).parent
    weights, state = Path(trained.checkpoint).read_bytes(), (run / "state.safetensors").read_bytes()
    images, labels = (
        gzip.decompress((DIGITS / f"t10k-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1")
    )
    pixels = np.frombuffer(images[16:], np.uint8).reshape(-1, 28, 28)[:30]
    few = idx_bytes(pixels)
    arrays: dict[str, np.ndarray] = {"images": pixels, "labels": np.arange(30)}
    text = {name: (run / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    return [
        Reader("w.safetensors", lambda path: checkpoint.load(str(path), CPU), safetensors_forms(weights)),
        Reader("m.safetensors", lambda path: checkpoint.read_metadata(str(path)), safetensors_forms(weights)),
        Reader("s.safetensors", load_state, safetensors_forms(state)),
        Reader("i.idx", as_input, [(few, whole), (gzip.compress(few), whole), (few, gzip.compress)]),
        Reader(
            "t10k-images-idx3-ubyte.gz",
            idx_folder("t10k-images-idx3-ubyte.gz"),
            [(gzip.compress(images), whole), (images, lambda content: gzip.compress(content, 1))],
        ),
        Reader("t10k-labels-idx1-ubyte", idx_folder("t10k-labels-idx1-ubyte.gz"), [(labels, whole)]),
        Reader("d.npz", lambda path: data.load(str(path), "train", None, print), npz_forms(arrays, "images")),
        Reader("config.json", lambda path: read_config(str(path.parent)), [(text["config.json"], whole)]),
        Reader("metrics.jsonl", lambda path: read_metrics(str(path)), [(text["metrics.jsonl"], whole)]),
        Reader("c.csv", as_codes, [(code_rows("csv"), whole)]),
        Reader("c.jsonl", as_codes, [(code_rows("jsonl"), whole)]),
        Reader("p.png", lambda path: read_image(str(path)), picture_forms()),
    ]


# How they are damaged

NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?")
NASTY = (
    b"",
    b"\0",
    b"\xff" * 8,
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"1.5",
    b"true",
    b"null",
    b"{}",
    b'{"a":1,"a":2}',
    b'"\\ud800"',
    b"\xed\xa0\x80",
    b"9" * 5_000,
    b"1" + b"0" * 300,
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b'"' + b"x" * 20_000 + b'"',
    b"../../../etc/passwd",
    b"\x1b[2J",
    b"\n",
)
INTEGERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
    10**8,
)


def somewhere(draw: random.Random, content: bytes | bytearray) -> int:
    """A place in a file: mostly near its beginning or its end, where the headers are."""
    reach = draw.choice((16, 64, 512, 4096, len(content)))
    place = draw.randrange(min(reach, len(content)) + 1)
    return place if draw.random() < 0.8 else len(content) - place


def mutated(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """A file with one to four wounds."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, kind = somewhere(draw, found), draw.randrange(9)
        if kind == 0:  # flipped bits
            for place in {somewhere(draw, found) for _ in range(draw.choice((1, 2, 8)))} - {len(found)}:
                found[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            del found[at : at + draw.choice((1, 2, 4, 100))]
        elif kind == 3:
            found[at:at] = draw.choice(NASTY)
        elif kind == 4:  # a part a second time
            found[at:at] = found[at : at + draw.choice((1, 8, 64, 4096))]
        elif kind == 5:  # the rest of another file
            found[at:] = other[min(somewhere(draw, other), len(other)) :]
        elif kind == 6:  # a length, a size, an offset
            form = draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(form)
            found[at : at + size] = struct.pack(form, draw.choice(INTEGERS) % 256**size)
        elif kind == 7:
            numbers = list(NUMBER.finditer(bytes(found[:20_000])))
            if numbers:
                one = draw.choice(numbers)
                found[one.start() : one.end()] = draw.choice((*NASTY, str(draw.choice(INTEGERS)).encode()))
        else:
            found[at : at + 8] = draw.randbytes(8)
    return bytes(found)


# What is measured


def peak() -> float:
    """The most memory that this process has had, in MB; since `forget_peak` on Linux."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak() -> float:
    """Begin to look for the peak anew; answers with the memory as it is, in MB."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


class Tally:
    """What the cases of a reader came to."""

    def __init__(self) -> None:
        self.cases = self.refused = 0
        self.slowest, self.which = 0.0, ""

    def read(self, reader: Reader, path: Path, what: str) -> None:
        """One case. Whatever is raised but VaeError goes on to pytest, with the case's number before it."""
        self.cases += 1
        began = time.process_time()
        try:
            reader.read(path)
        except VaeError:
            self.refused += 1
        except BaseException as error:
            error.add_note(f"the case: {what}")
            raise
        seconds = time.process_time() - began
        if seconds > self.slowest:
            self.slowest, self.which = seconds, what


def test_mutated_files_are_read_or_refused(
    readers: list[Reader], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tallies = {reader.name: Tally() for reader in readers}
    for reader in readers:  # as they are they are read, so what is refused is refused for its wounds
        (tmp_path / reader.name).mkdir()
        for content, dress in reader.forms:
            (tmp_path / reader.name / reader.name).write_bytes(dress(content))
            reader.read(tmp_path / reader.name / reader.name)
    baseline = forget_peak()
    for number in range(CASES - EXAMPLES):
        reader = readers[number % len(readers)]
        draw = random.Random(number)
        content, dress = draw.choice(reader.forms)
        path = tmp_path / reader.name / reader.name
        path.write_bytes(dress(mutated(draw, content, draw.choice(reader.forms)[0])))
        tallies[reader.name].read(reader, path, f"number {number}, {reader.name}")
    most = peak() - baseline
    slowest = max(tallies.values(), key=lambda tally: tally.slowest)
    if SOAKING:
        with capsys.disabled():
            print(f"\n{'reader':28}{'cases':>8}{'refused':>9}{'slowest':>10}")
            for name, tally in tallies.items():
                print(f"{name:28}{tally.cases:8}{tally.refused:9}{tally.slowest:8.3f} s")
            print(f"slowest: {slowest.which}; memory {most:.0f} MB above the baseline of {baseline:.0f} MB")
        assert slowest.slowest <= MAX_SECONDS, slowest.which
    assert most <= MAX_MEGABYTES
    assert all(0 < tally.refused < tally.cases for tally in tallies.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FUZZ = settings(
    max_examples=max(EXAMPLES // 2, 1),
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def places(value: object) -> Iterator[tuple[object, object]]:
    """Every place of a JSON value: what it is in, and its key or index."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@FUZZ
@given(which=st.integers(0, 2**32), item=JSON)
def test_json_of_any_kind_is_read_or_refused(readers: list[Reader], tmp_path: Path, which: int, item: object) -> None:
    """Any value in any place of a config, of metrics, of what a weights and a state file say of themselves."""
    candidates = [reader for reader in readers if reader.forms[-1][0][:1] == b"{"]
    reader = candidates[which % len(candidates)]
    content, dress = reader.forms[-1]
    value, _ = json.JSONDecoder().raw_decode(content.decode())
    found = list(places(value))
    container, key = found[which // len(candidates) % len(found)]
    container[key] = item  # type: ignore[index]
    text = json.dumps(value).encode()
    (tmp_path / reader.name).write_bytes(dress(text))
    Tally().read(reader, tmp_path / reader.name, repr(text[:2000]))


@FUZZ
@given(
    descr=st.sampled_from(["|u1", "<i8", "|O", "|S0", "|V9", ">f4", [("a", "|u1")], "\\d", "m8[ns]", 7, None]),
    shape=st.lists(st.integers(-1, 40) | st.sampled_from([2**31, 2**63, 10**30]), max_size=5),
    fortran=st.booleans() | st.integers(),
    values=st.binary(max_size=100),
)
def test_arrays_of_any_header_are_read_or_refused(
    readers: list[Reader], tmp_path: Path, descr: object, shape: list[int], fortran: object, values: bytes
) -> None:
    header = repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}).encode() + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values
    reader = next(reader for reader in readers if reader.name == "d.npz")
    (tmp_path / "d.npz").write_bytes(zipped("images.npy")(npy))
    Tally().read(reader, tmp_path / "d.npz", repr(npy))
