"""Files made to hurt: bombs, false claims, tricks with names, and things that are no files."""

import gzip
import io
import json
import os
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS, Invoke, assert_one_line
from PIL import Image, PngImagePlugin
from test_checkpoint import join, split
from test_hostile import MAX_MEGABYTES, SOAKING, Reader, forget_peak, peak, readers, saved, with_header, with_metadata
from test_idx import idx_bytes

from vaecli import data
from vaecli.errors import VaeError
from vaecli.folders import list_images

__all__ = ["readers"]  # the fixture

pytestmark = pytest.mark.soak

RECORD = {"epoch": 1} | {f"{s}_{n}": 1.5 for s in ("train", "test") for n in ("loss", "reconstruction", "kl")}
ZEROS = bytes(2**24)


def long_history(weights: bytes) -> bytes:
    text, dress = with_metadata(weights)
    value = json.loads(text)
    return dress(json.dumps(value | {"epoch": 10**5, "history": [RECORD | {"epoch": 7}] * 10**5}).encode())


def nested(weights: bytes) -> bytes:
    """A header as long as headers may be, of what takes the most memory."""
    return with_header(b"")(b'{"a":[' + b"{}," * 2_700_000 + b"{}]}")


def sparse(weights: bytes) -> bytes:
    """A sound header; `test_a_trap` makes the file 3 GB long."""
    return weights


def bomb(weights: bytes) -> bytes:
    """A gzip of 1 GB in 1 MB, an IDX file indeed."""
    rows = len(ZEROS) // 784 * 64
    head = struct.pack(">HBB3I", 0, 8, 3, rows, 28, 28)
    return gzip.compress(head) + gzip.compress(bytes(len(ZEROS) // 784 * 784)) * 64


def npy(shape: tuple[int, ...], values: bytes = b"") -> bytes:
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


def archive(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


DIGIT_ARRAY = npy((20, 28, 28), bytes(20 * 784))


def flagged(content: bytes, flag: int = 0, method: int | None = None) -> bytes:
    """A zip whose members claim to be encrypted, or to be packed with another method."""
    changed = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.index(mark) + offset
        changed[at] |= flag
        if method is not None:
            changed[at + 2 : at + 4] = struct.pack("<H", method)
    return bytes(changed)


def bmp(side: int, bits: int, packing: int, row: bytes) -> bytes:
    colours = bytes(4) * 2**bits
    body = row * side
    header = struct.pack("<IHHI", 0, 0, 0, 54 + len(colours))
    sizes: bytes = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, packing, len(body), 0, 0, 2**bits, 0)
    return b"".join([b"BM", header, sizes, colours, body])


def text_png(chunks: int) -> bytes:
    """A small picture with texts of 16 MB that are packed to 16 KB."""
    info = PngImagePlugin.PngInfo()
    body = b"a\0\0" + zlib.compress(ZEROS, 1)
    for _ in range(chunks):
        info.add(b"zTXt", body)
    return saved(lambda stream: Image.new("L", (28, 28)).save(stream, "png", pnginfo=info))


def scans(weights: bytes) -> bytes:
    """A progressive JPEG that passes over its pixels a thousand times."""
    picture = saved(lambda stream: Image.new("L", (1000, 1000), 7).save(stream, "jpeg", progressive=True))
    last = picture[picture.rindex(b"\xff\xda") : -2]
    return picture[:-2] + last * 1000 + picture[-2:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n(ran) (w) file closefile showpage\n%%EOF\n"

TRAPS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "header of 100 MB claimed": ("w.safetensors", lambda w: struct.pack("<Q", 10**8) + w[8:], "cut short"),
    "header of no length": ("w.safetensors", lambda w: bytes(8) + b"{" + w[9:], "not a safetensors file"),
    "header that is all brackets": ("m.safetensors", nested, "no metadata of vae"),
    "header in UTF-16": ("m.safetensors", lambda w: with_header(b"")('{"a":1}'.encode("utf-16-le")), "not valid JSON"),
    "history of 100,000 epochs": ("m.safetensors", long_history, "header of"),
    "3 GB of nothing": ("w.safetensors", sparse, "is damaged: it has 3,000,000,000 bytes"),
    "class name without end": (
        "m.safetensors",
        lambda w: with_metadata(w)[1](json.dumps(metadata(w) | {"class_names": ["x" * 10**6]}).encode()),
        "too long",
    ),
    "metrics of zeros": ("metrics.jsonl", lambda w: b"0\n" * 2**22, "not a JSON object"),
    "metrics of 9 MB": ("metrics.jsonl", lambda w: bytes(9 * 2**20), "more than"),
    "config of brackets": ("config.json", lambda w: b"[" * 10**6, "nested too deeply"),
    "config with a number of 100,000 digits": ("config.json", lambda w: b'{"format":' + b"9" * 10**5 + b"}", "damaged"),
    "2^31 images": ("i.idx", lambda w: struct.pack(">HBB3I", 0, 8, 3, 2**31, 28, 28) + bytes(784), "cut short"),
    "2^31 images, gzipped": (
        "i.idx",
        lambda w: gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 28, 28) + bytes(784)),
        "cut short",
    ),
    "gzip bomb": ("t10k-images-idx3-ubyte.gz", bomb, "unpacked first"),
    "images of one pixel": ("i.idx", lambda w: idx_bytes(np.zeros((10**5, 1, 1), np.uint8)), "too small"),
    "npz of 140 MB in 1 MB": (
        "d.npz",
        lambda w: archive([("images.npy", npy((180_000, 28, 28), bytes(180_000 * 784)))]),
        "no plain array",
    ),
    "npz with more behind": ("d.npz", lambda w: archive([("images.npy", DIGIT_ARRAY + ZEROS)]), "holds more"),
    "npz with less": ("d.npz", lambda w: archive([("images.npy", DIGIT_ARRAY[:-9])]), "cut short"),
    "npz of lzma": ("d.npz", lambda w: archive([("images.npy", DIGIT_ARRAY)], zipfile.ZIP_LZMA), "unusual"),
    "npz of bzip2": ("d.npz", lambda w: archive([("images.npy", DIGIT_ARRAY)], zipfile.ZIP_BZIP2), "unusual"),
    "npz of no known method": ("d.npz", lambda w: flagged(archive([("images.npy", DIGIT_ARRAY)]), 0, 77), "unusual"),
    "npz that is encrypted": ("d.npz", lambda w: flagged(archive([("images.npy", DIGIT_ARRAY)]), 1), "is no data set"),
    "npz that climbs": ("d.npz", lambda w: archive([("../images.npy", DIGIT_ARRAY)]), "no array 'images'"),
    "npz from the root": ("d.npz", lambda w: archive([("/images.npy", DIGIT_ARRAY)]), "no array 'images'"),
    "npz of an empty type": (
        "d.npz",
        lambda w: archive([("images.npy", npy((2**60,)).replace(b"|u1", b"|V0"))]),
        "no plain array",
    ),
    "PostScript": ("p.png", lambda w: EPS, "unknown format"),
    "PNG with texts of 128 MB": ("p.png", lambda w: text_png(8), "no image that can be read"),
    "JPEG of 1,000 scans": ("p.png", scans, "scans"),
    "BMP for the slow decoder": ("p.png", lambda w: bmp(2000, 8, 1, b"\0\0"), "too many pixels"),
    "PPM for the slow decoder": ("p.png", lambda w: b"P1 2000 2000 " + bytes(10), "too many pixels"),
}


def metadata(weights: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(split(weights)[0]["__metadata__"]["vae"])
    return found


@pytest.mark.parametrize(("name", "build", "words"), TRAPS.values(), ids=TRAPS)
def test_a_trap_is_refused_in_little_memory(
    readers: list[Reader], tmp_path: Path, name: str, build: Callable[[bytes], bytes], words: str
) -> None:
    reader = next(reader for reader in readers if reader.name == name)
    path = tmp_path / name
    path.write_bytes(build(readers[0].forms[0][0]))
    if build is sparse:
        os.truncate(path, 3 * 10**9)
    baseline = forget_peak()
    with pytest.raises(VaeError, match=words):
        reader.read(path)
    assert peak() - baseline <= MAX_MEGABYTES
    path.unlink()


@pytest.mark.skipif(not SOAKING, reason="seconds of pixels, for the soak: SOAK_FUZZ=1")
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_the_largest_picture_that_is_read_takes_little_memory(readers: list[Reader], tmp_path: Path, kind: str) -> None:
    side = 4180 if kind == "WEBP" else 5910
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"PNG": {"compress_level": 1}, "JPEG": {"progressive": True, "subsampling": 0}}.get(kind, {})
    mode = "RGB" if kind == "JPEG" else "RGBA"
    Image.new(mode, (side, side), "white").save(tmp_path / "p.png", kind, exif=exif, **options)
    baseline = forget_peak()
    next(reader for reader in readers if reader.name == "p.png").read(tmp_path / "p.png")
    assert peak() - baseline <= MAX_MEGABYTES


@pytest.mark.parametrize("kind", ["circle", "fifo", "folder", "device", "socket", "missing"])
def test_what_is_no_file_is_refused_at_once(
    readers: list[Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for reader in readers:
        (tmp_path / reader.name).mkdir()
        path = tmp_path / reader.name / reader.name
        if kind == "circle":
            path.symlink_to(path.name)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "socket":
            monkeypatch.chdir(path.parent)  # its address must be short
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(reader.name)
        if reader.name in ("i.idx", "c.csv", "c.jsonl"):  # no IDX file is an image; codes may come from a pipe
            continue
        with pytest.raises(VaeError):
            reader.read(path)


def test_an_archive_writes_nothing(tmp_path: Path) -> None:
    """Members are read by name, never extracted; of two of one name the last counts, as in numpy."""
    (tmp_path / "inside").mkdir()
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = archive([("../escaped.npy", b""), ("images.npy", b"rubbish"), ("images.npy", DIGIT_ARRAY)])
    (tmp_path / "inside/d.npz").write_bytes(content)
    assert len(data.load(str(tmp_path / "inside/d.npz"), "train", None, print).images) == 18
    assert os.listdir(tmp_path) == ["inside"]


def test_folders_without_end_are_refused(tmp_path: Path) -> None:
    deep = os.path.join(tmp_path, *["d"] * 500)
    os.makedirs(deep)
    with pytest.raises(VaeError, match="folders deep"):
        list_images(str(tmp_path), print)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 are Linux's")
@pytest.mark.parametrize("name", ["a\nb\x1b[2J\x07.png", "\udcff\u202e.png", "x" * 250 + ".png"])
def test_names_do_not_reach_the_terminal_as_they_are(ckpt: str, tmp_path: Path, invoke: Invoke, name: str) -> None:
    (tmp_path / name).write_bytes(b"no image")
    result = invoke("encode", ckpt, tmp_path / name)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert assert_one_line(result.stderr)[:-1].isprintable()


def test_a_line_on_the_terminal_has_an_end(ckpt: str, tmp_path: Path, invoke: Invoke) -> None:
    header, values = split(Path(ckpt).read_bytes())
    (tmp_path / "a.safetensors").write_bytes(join(header | {"x" * 10**6: header["conv3.bias"]}, values))
    result = invoke("test", tmp_path / "a.safetensors")
    assert result.exit_code == 1
    assert len(assert_one_line(result.stderr)) < 10_000


def test_libtiff_says_nothing(ckpt: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], invoke: Invoke) -> None:
    noise = Image.effect_noise((64, 64), 90)
    content = saved(lambda stream: noise.save(stream, "tiff", compression="tiff_lzw"))
    (tmp_path / "a.tif").write_bytes(content[:100] + bytes(500) + content[600:])
    assert invoke("encode", ckpt, tmp_path / "a.tif").exit_code == 1
    assert capfd.readouterr() == ("", "")


def test_a_set_in_the_data_folder_is_not_believed(tmp_path: Path) -> None:
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(b"\n\n")
    with pytest.raises(VaeError, match="is not the file of USPS"):
        data.load("usps", "test", str(tmp_path), print)
    for file in DIGITS.iterdir():
        (tmp_path / file.name).write_bytes(gzip.compress(ZEROS) * 9)
    baseline = forget_peak()
    with pytest.raises(VaeError, match="larger than any file of its kind"):
        data.load("mnist", "test", str(tmp_path), print)
    assert peak() - baseline <= MAX_MEGABYTES
