"""What all commands compute with a model: its preparation, pixels in and out, and the passes without gradients.

A split is one uint8 tensor; a chunk is a slice of it, made float on the way in. Per-image losses
are collected and reduced once, in float64, so no mean depends on a batch size.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vaecli.errors import VaeError
from vaecli.loss import Terms, kl, reconstruction
from vaecli.model import ConvVAE, Gaussian
from vaecli.runtime import NOISE_BLOCK, generator, noise

# Images computed at once outside training. With more the activations leave a CPU's cache: 6,628 images/s
# are evaluated in chunks of 100, 5,895 of 50, 6,287 of 200, 5,468 of 1,000 (two Zen 4 cores, torch 2.15,
# medians of 7 interleaved runs); encoding and decoding agree. A GPU waits for the CPU's launches: 10,000
# images take 33 ms in chunks of 1,000, 18 of 2,000 and 14 of 5,000, which take 2.5 times the memory (H200,
# torch 2.11, medians of 6).
CHUNK, GPU_CHUNK = 100, 2 * NOISE_BLOCK  # the latter in whole blocks of noise


@dataclass(frozen=True)
class Losses:
    """Means over the images of a split, in nats per image; loss = reconstruction + kl."""

    loss: float
    reconstruction: float
    kl: float

    @classmethod
    def mean_of(cls, terms: Terms) -> "Losses":
        """The means of per-image terms (N,), taken in float64."""
        reconstruction, kl = (float(term.cpu().double().mean()) for term in terms)  # MPS has no float64
        return cls(reconstruction + kl, reconstruction, kl)


def prepare(model: ConvVAE, device: torch.device) -> ConvVAE:
    """The model on its device, its convolutions channels-last, which oneDNN computes faster, and ReLUs in place.

    For commands: hooks, and the pruning of layers, want a model that is as it was loaded.

    38.3 ms a training step become 32.1: fp32, 100 images, two Zen 5 cores, torch 2.15, medians of
    7 interleaved runs of 50 steps. The figure in `allocator` is of the same session. With ReLUs in place a step
    takes 3% less, a test pass 7% (two Zen 4 cores without AVX-512, torch 2.14, medians of 6 interleaved runs).
    """
    model.in_place = True
    return model.to(device).to(memory_format=torch.channels_last)


# torch's initialisation draws from the process's one generator: trainings in threads take turns there.
_INITIALISING = threading.Lock()


def new_model(z_dim: int, seed: int) -> ConvVAE:
    """A ConvVAE with torch's default initialisation, drawn from `seed` and nothing else."""
    with _INITIALISING, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(seed, "init").get_state())
        return ConvVAE(z_dim)


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """Bytes to grey pixels: uint8 (B, 28, 28) -> float32 (B, 1, 28, 28) in [0, 1] on `device`."""
    return images.to(device).unsqueeze(1) / 255


def to_bytes(logits: Tensor) -> Tensor:
    """Logits to pixels, rounded and not truncated: (B, 1, 28, 28) -> uint8 (B, 28, 28) on the CPU."""
    return logits.sigmoid().mul(255).round().to(torch.uint8).squeeze(1).cpu()


def blocks(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A split in blocks of 1,000 images, numbered: the blocks that noise is drawn in."""
    return enumerate(torch.split(images, NOISE_BLOCK))


def by_chunks(device: torch.device, compute: Callable[..., Iterable[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """The tensors that `compute` makes of equally long inputs, a few images at a time, joined again."""
    size = CHUNK if device.type == "cpu" else GPU_CHUNK
    parts = [compute(*chunk) for chunk in zip(*(torch.split(each, size) for each in inputs), strict=True)]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@torch.inference_mode()
def encode(model: ConvVAE, images: Tensor, device: torch.device) -> Gaussian:
    """Posteriors of uint8 images (B, 28, 28), in float32 on the device. Raises VaeError if not finite."""
    posterior = _encode(model, images, device)
    require_finite(posterior, "codes")
    return posterior


def _encode(model: ConvVAE, images: Tensor, device: torch.device) -> Gaussian:
    return Gaussian(*by_chunks(device, lambda chunk: model.encode(to_unit(chunk, device)), images))


def _posterior_noise(seed: int, block: int, count: int, z_dim: int, draw: int = 0) -> Tensor:
    """eps (count, Z) of the images from this block on, the same in every command that samples a posterior."""
    after = block + max(1, math.ceil(count / NOISE_BLOCK))
    return torch.cat([noise(seed, "posterior", one, z_dim, draw) for one in range(block, after)])[:count]


def sample_posterior(posterior: Gaussian, seed: int, block: int, temperature: float = 1.0) -> Tensor:
    """z (B, Z) of one block of images: those whose loss `evaluate` measures. Raises VaeError if not finite.

    `temperature` scales the standard deviation: 0 is the mean.
    """
    mean = posterior.mean
    z = posterior.sample(_posterior_noise(seed, block, *mean.shape).to(mean.device) * temperature)
    require_finite([z], "codes")
    return z


def require_finite(values: Iterable[Tensor], what: str, remedy: str = "Use another one.") -> None:
    """Raise VaeError if a checkpoint, sound by itself, computes what is no number."""
    if not all(value.isfinite().all() for value in values):
        raise VaeError(f"The checkpoint gives {what} that are not finite. {remedy}")


@torch.inference_mode()
def decode(model: ConvVAE, z: Tensor) -> Tensor:
    """Pixels of codes (B, Z): uint8 (B, 28, 28) on the CPU. Raises VaeError if not finite."""

    def pixels(chunk: Tensor) -> list[Tensor]:
        logits = model.decode(chunk)
        require_finite([logits], "pixels", "Use another one, or codes nearer to 0.")
        return [to_bytes(logits)]

    return by_chunks(z.device, pixels, z)[0]


@torch.inference_mode()
def evaluate(
    model: ConvVAE,
    images: Tensor,
    *,
    seed: int,
    device: torch.device,
    samples: int = 1,
    on_block: Callable[[int], None] = lambda images: None,
) -> Terms:
    """Per-image terms (N,) of uint8 images (N, 28, 28), each the mean over `samples` of z; float64, on the CPU.

    They are computed in float32. The noise depends on seed and position alone: not on the epoch, so
    that a curve over epochs has no noise from it, and not on a batch size. `on_block` hears for how many
    images a draw is done.
    """
    model.eval()

    def costs(z: Tensor, chunk: Tensor) -> list[Tensor]:
        return [reconstruction(model.decode(z), to_unit(chunk, device))]

    # Where float64 is: each copy to the CPU waits for a GPU, so they are made at the end.
    place = torch.device("cpu") if device.type == "mps" else device
    parts = []
    for number, chunk in enumerate(torch.split(images, GPU_CHUNK)):
        posterior = _encode(model, chunk, device)
        total = torch.zeros(len(chunk), dtype=torch.float64, device=place)
        for draw in range(samples):
            block = number * GPU_CHUNK // NOISE_BLOCK
            eps = _posterior_noise(seed, block, len(chunk), model.z_dim, draw)
            # CUDA has its own copy when the call returns, and the CPU goes on; MPS would read freed memory.
            eps = eps.to(device, non_blocking=device.type == "cuda")
            total += by_chunks(device, costs, posterior.sample(eps), chunk)[0].to(place)
            on_block(len(chunk))
        parts.append(Terms(total / samples, kl(posterior).to(place).double()))
    return Terms(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
