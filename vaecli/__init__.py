"""A convolutional VAE for MNIST-like images: train, test, encode, sample, scatter, curves."""

import os
import signal
import sys

_IS_COMMAND = os.path.basename(sys.argv[0]) == "vae" or (sys.argv[0] == "-m" and "vaecli" in sys.orig_argv)
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # In the command, Ctrl-C during imports or at the very end shall print no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Without it cuBLAS may reorder sums. torch reads it once, at its first product on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

TYPE_CHECKING = False  # type checkers take it for typing's, whose import is slow
if TYPE_CHECKING:
    from vaecli.model import ConvVAE

__all__ = ["load_model"]


def load_model(path: str | os.PathLike[str], device: str = "cpu") -> "ConvVAE":
    """The trained ConvVAE in a `.safetensors` file or a run folder (its last checkpoint), in eval mode.

    Raises vaecli.errors.CheckpointError for a file that is no sound checkpoint of this model, and
    its parent VaeError for a device that is not there.

    Example:
        >>> model = vaecli.load_model("outputs/mnist-z2")
        >>> with torch.inference_mode():
        ...     digits = model.decode(torch.randn(10, model.z_dim)).sigmoid()  # (10, 1, 28, 28)
    """
    # Imported here: torch takes seconds, and `vae --help` passes through this file.
    from vaecli.checkpoint import load
    from vaecli.run import find_checkpoint
    from vaecli.runtime import choose_device

    return load(find_checkpoint(path), choose_device(device))[0]
