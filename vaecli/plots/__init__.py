"""The figures, as matplotlib Figures without pyplot: no display, no settings left changed, the same bytes each time.

Here is what they share: colours, style, text that can be drawn, and the way to bytes.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from vaecli.errors import VaeError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
except OSError as error:  # neither its own folders nor those for temporary files can be written
    raise VaeError("matplotlib has no folder that it can write. Set MPLCONFIGDIR or TMPDIR to one.") from error
except UnicodeDecodeError as error:  # it looks for one here, then in the home folder
    raise VaeError(
        "matplotlib finds a matplotlibrc that is no text in UTF-8. Save it as that, or remove it."
    ) from error

# Paul Tol's "muted" scheme (personal.sron.nl/~pault), made to stay apart under the common
# colour-vision deficiencies and in lightness; reordered so that digits that a VAE puts side by side
# (4 7 9, 3 5 8) differ most. A class has the same colour in every figure.
PALETTE = (
    "#332288", "#88CCEE", "#117733", "#CC6677", "#AA4499",
    "#44AA99", "#999933", "#DDCC77", "#882255", "#777777",
    # For letters: each is the farthest in CIELAB from all before it, 30 or more where the ten are 23 apart,
    # among colours that are neither pale nor garish (lightness 25 to 80, chroma up to 72).
    "#D2690F", "#6996FF", "#693C0F", "#1EE187", "#1E3C69", "#E1B4F0", "#96000F", "#FFB496",
    "#004B3C", "#96D24B", "#D287FF", "#FF5A5A", "#F0B42D", "#3C4B00", "#FF5AA5", "#0087C3",
)  # fmt: skip
LEGEND_ROWS = 20  # of one column
_DPI = {"png": 120, "svg": 180, "pdf": 180}  # of a vector file's rasterised points, which may be printed
_STYLE: Any = {
    # matplotlib's own defaults: a `matplotlibrc`, which may lie in the current folder, changes no figure.
    **{name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")},
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.titlesize": 11,
    "legend.frameon": False,
    "svg.hashsalt": "vae",  # else ids are random
}

_DRAWING = threading.Lock()


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The figures' common style, also as a decorator; matplotlib's settings are the process's: threads take turns."""
    with _DRAWING, mpl.rc_context(_STYLE):
        yield


def render(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a png, svg or pdf file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names in any script
        figure.savefig(buffer, format=form, dpi=_DPI[form], bbox_inches="tight", metadata=undated[form])
    return buffer.getvalue()


def plain(name: str, longest: int = 80) -> str:
    """A name as text that can be drawn: no mathematics between dollars, nothing unprintable, not endless.

    A long one loses its middle: what tells names apart is often at their end.
    """
    shown = "".join(c if c.isprintable() else "?" for c in name)
    if len(shown) > longest:
        shown = f"{shown[: longest // 2 - 2]}...{shown[-(longest - longest // 2 - 1) :]}"
    return shown.replace("$", r"\$")


def drawable(name: str) -> bool:
    """Whether the font has every character of a name, so that it is not drawn as boxes."""
    font = get_font(findfont("DejaVu Sans"))  # matplotlib's own, which comes with it
    return all(font.get_char_index(ord(c)) for c in name)


def told_apart(names: Sequence[str]) -> list[str]:
    """Names as `plain` shows them; all are longer where short ones of different names would be the same."""
    longest = 60
    while len({plain(name, longest) for name in names}) < len(set(names)) and longest < max(map(len, names)):
        longest += 8
    return [plain(name, longest) for name in names]


def class_colour(label: int) -> str:
    """The colour of a class, whatever else is in the figure."""
    if label < len(PALETTE):
        return PALETTE[label]
    # Golden-ratio steps around the wheel keep neighbours apart for any number of classes; no colour
    # is as light as the paper.
    colour = mpl.colors.hsv_to_rgb((label * 0.618034 % 1, 0.8, 0.5 + 0.35 * (label % 2)))
    return mpl.colors.to_hex(tuple(colour.tolist()))


def legend_size(names: Sequence[str]) -> tuple[int, float]:
    """The columns of a legend, and about how many inches wide it is."""
    columns = 1 + (len(names) - 1) // LEGEND_ROWS
    return columns, columns * (0.7 + 0.09 * max(map(len, names), default=0))
