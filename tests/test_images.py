"""Pictures in."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from vaecli import data
from vaecli.backgrounds import bright_backgrounds, inverted
from vaecli.errors import DataError
from vaecli.images import (
    MAX_SCANS,
    Pixels,
    conversion_note,
    fit,
    fit_all,
    read_image,
    read_images,
)


def test_28x28_grey_is_left_alone(tmp_path: Path, digits: data.Split) -> None:
    pixels = digits.images[3].numpy()
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    image, converted = read_image(str(tmp_path / "digit.png"))
    np.testing.assert_array_equal(image, pixels)
    assert not converted


def picture(mode: str) -> Image.Image:
    """A white disc left of the middle on black, 280 wide and 140 high."""
    image = Image.new("L", (280, 140), 0)
    ImageDraw.Draw(image).ellipse((30, 30, 110, 110), fill=255)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    if mode == "RGBA":  # the disc is the opaque part of an all-white picture
        return Image.merge("RGBA", [Image.new("L", image.size, 255)] * 3 + [image])
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "LA"])
def test_every_mode_gives_the_same_disc(mode: str) -> None:
    disc = fit(picture(mode)).astype(int)
    assert disc.shape == (28, 28)
    assert disc[14, 7] >= 250  # padded above and below, so the disc's middle is at (70 + 70) / 10
    assert disc[:7].max() == disc[21:].max() == disc[:, 20:].max() == 0
    assert abs(disc.sum() / 255 - np.pi * 4.0**2) < 2


def test_padding_takes_the_borders_median() -> None:
    wide = Image.new("RGB", (100, 20), (250, 240, 230))
    ImageDraw.Draw(wide).rectangle((40, 5, 60, 15), fill="black")
    pixels = fit(wide)
    assert pixels[0, 0] == pixels[27, 27] == pixels[14, 0]
    assert 235 <= pixels[0, 0] <= 245
    assert pixels[14, 14] < 60
    ImageDraw.Draw(wide).rectangle((0, 0, 30, 20), fill="black")  # a quarter of the border
    assert fit(wide)[0, 0] == pixels[0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture(orientation: int, tmp_path: Path) -> None:
    image = Image.new("L", (28, 28), 0)
    image.paste(255, (0, 0, 28, 7))  # a bar on top, brighter on its left
    image.paste(100, (14, 0, 28, 7))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    pixels, converted = read_image(str(tmp_path / "turned.png"))
    assert converted == (orientation > 1)
    np.testing.assert_array_equal(pixels, ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(3000, 2100), (2100, 3001)])
def test_a_large_picture_is_what_it_would_be_in_one_go(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize(size)
    ImageDraw.Draw(image).ellipse((200, 300, 1500, 900), fill=255)
    image.convert("RGB").save(tmp_path / f"large.{suffix}")
    square = Image.new("L", (max(size),) * 2, int(np.median(border_of(np.asarray(image)))))
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    wanted = np.asarray(square.resize((28, 28), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(read_image(str(tmp_path / f"large.{suffix}"))[0] - wanted).max() <= 4


def border_of(pixels: Pixels) -> Pixels:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def test_what_lies_behind_a_jpeg_does_not_count(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").save(buffer, "jpeg", progressive=True, exif=b"Exif\0\0" + b"\xff\xda" * 100)
    film = b"\0\2" + b"\xff\xda\0\2" * (MAX_SCANS + 1)  # telephones append one, in whose bytes anything may stand
    (tmp_path / "still.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "motion.jpg").write_bytes(buffer.getvalue() + film)
    pixels, _ = read_image(str(tmp_path / "motion.jpg"))
    np.testing.assert_array_equal(pixels, read_image(str(tmp_path / "still.jpg"))[0])


@pytest.mark.parametrize("most", [65535, 1023])
def test_netpbm_of_16_bits_is_read(most: int, tmp_path: Path) -> None:
    ramp = np.arange(0, 28 * 28).reshape(28, 28) / (28 * 28 - 1)
    (tmp_path / "deep.pgm").write_bytes(f"P5 28 28 {most}\n".encode() + np.rint(ramp * most).astype(">u2").tobytes())
    pixels, converted = read_image(str(tmp_path / "deep.pgm"))
    assert converted
    assert np.abs(pixels - ramp * 255).max() <= 1


def test_inversion_leaves_a_dark_ground_and_blackens_a_tinted_bright_one() -> None:
    dark, bright = np.full((28, 28), 100, np.uint8), np.full((28, 28), 200, np.uint8)
    dark[10:18, 10:18], bright[10:18, 10:18] = 0, 0
    of_dark, of_bright = inverted(np.stack([dark, bright]))
    assert (of_dark[0, 0], of_dark[14, 14]) == (155, 255)
    assert (of_bright[0, 0], of_bright[14, 14]) == (0, 255)


def test_scaling_is_antialiased() -> None:
    stripes = np.zeros((280, 280), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(fit(Image.fromarray(stripes))[2:-2, 2:-2].astype(int)) < 10


def broken_png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "png")
    return buffer.getvalue()[:900]


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size without its pixels: an error that speaks of the size came before any was decoded."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\x10\0\0IDAT"
    )


# Without the address in memory that Pillow names.
UNKNOWN = r"no image that can be read \(unknown format\)\. Leave it out\."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", UNKNOWN),
        (b"GIF89a", UNKNOWN),
        (b"text", UNKNOWN),
        (broken_png(), "no image"),
        (png_header(20_000, 20_000), "too many pixels"),
    ],
    ids=["empty", "GIF header", "text", "truncated", "huge"],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.png .*{words}"):
        read_image(str(tmp_path / "bad.png"))


def test_a_long_thin_picture_takes_no_memory(tmp_path: Path) -> None:
    Image.new("L", (100_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=r"thin\.png: .*too many pixels"):
        read_image(str(tmp_path / "thin.png"))


def test_transparency_in_a_28x28_grey_png_counts(tmp_path: Path) -> None:
    Image.new("L", (28, 28), 200).save(tmp_path / "clear.png", transparency=200)
    pixels, converted = read_image(str(tmp_path / "clear.png"))
    assert converted
    assert pixels.max() == 0


def test_a_transparent_grey_of_16_bits_is_the_one_alone(tmp_path: Path) -> None:
    pixels = np.full((28, 28), 65535, np.uint16)
    pixels[8:20, 8:20] = 20000
    pixels[:, 0] = 65534  # another grey, that 8 bits would not tell apart
    Image.fromarray(pixels).save(tmp_path / "deep.png", transparency=65535)
    expected = np.zeros((28, 28))
    expected[8:20, 8:20], expected[:, 0] = 78, 255
    assert np.array_equal(read_image(str(tmp_path / "deep.png"))[0], expected)


def test_a_tiff_of_16_bits_may_say_that_white_is_0(tmp_path: Path) -> None:
    pixels = np.zeros((28, 28), np.uint16)
    pixels[5:, :] = 65535
    for white_is in (0, 1):
        Image.fromarray(pixels).save(tmp_path / f"{white_is}.tif", tiffinfo={262: white_is})
    black, white = (read_image(str(tmp_path / f"{name}.tif"))[0].mean(axis=1) for name in (1, 0))
    assert list(black) == [0] * 5 + [255] * 23
    assert list(white) == [255] * 5 + [0] * 23


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    Image.new("L", (28, 28), 200).save(tmp_path / "exif.png", exif=b"Exif\0\0garbage!")
    assert read_image(str(tmp_path / "exif.png"))[0].min() == 200


def test_threads_leave_the_process_its_stderr_and_its_warnings(tmp_path: Path) -> None:
    path = str(tmp_path / "packed.tif")
    Image.new("L", (28, 28)).save(path, compression="tiff_lzw")
    before = os.fstat(2).st_ino, list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(read_image, [path] * 1000))) == 1000
    assert (os.fstat(2).st_ino, list(warnings.filters)) == before


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.ones((28, 28), kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(DataError, match=r"deep\.tiff: .*32 bits"):
        read_image(str(tmp_path / "deep.tiff"))


def test_conversions_are_counted(tmp_path: Path) -> None:
    for index, size in enumerate([(40, 30), (28, 28), (28, 29)]):
        Image.new("L", size, 255).save(tmp_path / f"{index}.png")
    images, converted = read_images([str(tmp_path / f"{index}.png") for index in range(3)])
    assert images.min() == 255
    assert converted == 2
    assert conversion_note(2, 3, "images").startswith("Converted 2 of 3 images to 28x28 grey")
    assert fit_all(np.zeros((2, 16, 16), np.uint8)).shape == (2, 28, 28)


def test_a_palette_of_28x28_is_its_colours(tmp_path: Path) -> None:
    grey = np.arange(784, dtype=np.uint8).reshape(28, 28) // 64 * 64
    Image.fromarray(grey).convert("RGB").quantize(4).save(tmp_path / "palette.png")
    pixels, converted = read_image(str(tmp_path / "palette.png"))
    assert converted
    np.testing.assert_array_equal(pixels, grey)


def test_the_last_band_of_a_long_picture_is_no_darker() -> None:
    assert fit(Image.new("L", (30_000, 40), 255)).min() == 255


def test_a_telephones_50_million_pixels_are_read(tmp_path: Path) -> None:
    Image.new("L", (8_000, 6_200), 255).save(tmp_path / "large.jpg")
    assert read_image(str(tmp_path / "large.jpg"))[0].min() == 255


def test_grey_paper_is_bright() -> None:
    page, torn = np.full((1, 28, 28), 140, np.uint8), np.full((1, 28, 28), 200, np.uint8)
    page[:, 10:18, 10:18] = 0
    torn[:, :, :12] = 0
    assert [bool(bright_backgrounds(images)) for images in (page, 255 - page, torn)] == [True, False, True]
