"""The training step and its epoch, on a CPU and on a GPU.

What made it fast has its figures where it is done: channels-last in `engine.prepare`, memory that is
kept in `allocator`, faster forms of layers in `layers`, and what a GPU computes in `by_hand`. Here it is
that the split is one uint8 tensor, that losses stay on the device until someone asks, and that Adam
takes all parameters at once. `make bench` measures the whole.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from vaecli.by_hand import GradientsByHand, flattened, pieces
from vaecli.engine import Losses, to_unit
from vaecli.errors import DivergedError
from vaecli.loss import Terms, negative_elbo
from vaecli.mixed import in_bf16
from vaecli.model import ConvVAE
from vaecli.runtime import generator
from vaecli.schedule import Schedule


class Trainer:
    """A model in training: its optimizer, and the step that each batch goes through.

    Arguments:
        model: on the device of the images, see `engine.prepare`.
        images: a split, uint8 (N, 28, 28).
        schedule: learning rate and weight of the KL term in the objective; the losses returned are unweighted.
        batch_size: images a step; the last batch of an epoch may be shorter.
        bf16: whether all layers but the heads run in bfloat16; weights, Adam and losses are float32 always.
    """

    def __init__(
        self, model: ConvVAE, images: Tensor, *, schedule: Schedule, batch_size: int, bf16: bool = False
    ) -> None:
        self.model, self.images, self.schedule, self.batch_size, self.bf16 = model, images, schedule, batch_size, bf16
        self.device = images.device
        # On a GPU what changes from step to step, Adam's count included, lies there, where a graph reads it.
        self._on_cuda = self.device.type == "cuda"
        self.kl_weight = torch.tensor(schedule.kl_weight_after(0), dtype=torch.float32, device=self.device)
        self.optimizer = Adam(  # fused: one kernel for all parameters
            model.parameters(),
            lr=torch.tensor(schedule.lr, dtype=torch.float32, device=self.device) if self._on_cuda else schedule.lr,
            fused=True,
            capturable=self._on_cuda,
        )
        self._graph: _Graph | None = None

    def epoch(
        self,
        epoch: int,
        seed: int,
        *,
        log_interval: int = 0,
        on_step: Callable[[int, float | None], None] = lambda images, loss: None,
    ) -> Losses:
        """One pass over the images, in this epoch's own order and with its own noise.

        `on_step` hears how many images a step took and, every `log_interval` steps, the batch's loss.
        Returns the running means of the epoch. Raises DivergedError if a loss is not finite.
        """
        count = len(self.images)
        order, eps = self._draw(epoch, seed)
        shuffled = self.images[order] if self._on_cuda else None  # at once, for one kernel a step less
        seen = torch.empty(2, count, device=self.device)  # read at each log interval and at the end only
        self.model.train()
        starts = range(0, count, self.batch_size)
        for step, start in enumerate(starts, 1):
            batch = slice(start, min(start + self.batch_size, count))
            self._follow_schedule(epoch - 1 + (step - 1) / len(starts))
            images = self.images[order[batch]] if shuffled is None else shuffled[batch]
            seen[:, batch] = self.run(images, eps[batch])
            size = batch.stop - start
            if log_interval and step % log_interval == 0:
                on_step(size, float(seen[:, batch].sum() / size))
                self._check_finite(seen[:, : batch.stop], epoch)
            else:
                on_step(size, None)
        self._check_finite(seen, epoch)
        return Losses.mean_of(Terms(*seen))

    def _draw(self, epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The epoch's permutation (N,) and noise (N, Z): all its randomness, so a resume needs no more."""
        count, z_dim = len(self.images), self.model.z_dim
        place = self.device if self.device.type == "cuda" else "cpu"
        order = torch.randperm(count, generator=generator(seed, "permutation", epoch, device=place), device=place)
        eps = torch.randn(count, z_dim, generator=generator(seed, "training noise", epoch, device=place), device=place)
        return order.to(self.device), eps.to(self.device)

    def _follow_schedule(self, epochs: float) -> None:
        """Set the next step's learning rate and KL weight, `epochs` into the training."""
        if self.schedule.kl_warmup:
            self.kl_weight.fill_(self.schedule.kl_weight_after(epochs))
        if self.schedule.cosine_epochs:
            lr = self.schedule.lr_after(epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"].fill_(lr) if self._on_cuda else lr

    def run(self, images: Tensor, eps: Tensor) -> Tensor:
        """One step on uint8 images (B, 28, 28) with noise (B, Z), as fast as it goes; returns the terms (2, B)."""
        if self._on_cuda and len(images) == self.batch_size:  # pragma: no cover-cuda
            self._graph = self._graph or _Graph(self)
            return self._graph.replay(images, eps)
        return self.step(images, eps)

    def step(self, images: Tensor, eps: Tensor) -> Tensor:
        """One step of Adam on uint8 images (B, 28, 28) with noise (B, Z); returns the terms (2, B)."""
        x = to_unit(images, self.device)  # (B, 1, 28, 28)
        logits, posterior = functional_call(self.model, in_bf16(self.model) if self.bf16 else {}, (x, eps))
        terms = negative_elbo(logits, posterior, x)
        self.model.zero_grad(set_to_none=True)
        terms.loss(self.kl_weight).mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return torch.stack([term.detach() for term in terms])

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Steps within the block leave no trace: weights and moments are put back, each in its own memory."""
        weights = {parameter: parameter.detach().clone() for parameter in self.model.parameters()}
        states = {
            parameter: {name: value.clone() for name, value in state.items()}
            for parameter, state in self.optimizer.state.items()
        }
        yield
        with torch.no_grad():
            for parameter, weight in weights.items():
                parameter.copy_(weight)
                before = states.get(parameter, {})
                for name, value in self.optimizer.state[parameter].items():
                    value.copy_(before.get(name, torch.zeros_like(value)))  # Adam begins with zeros

    def _check_finite(self, seen: Tensor, epoch: int) -> None:
        finite = seen.isfinite().all(dim=0)
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0]) // self.batch_size + 1
            raise DivergedError(f"the loss is not finite at epoch {epoch}, step {step}")


class Adam(torch.optim.Adam):
    """Adam as it is under what torch wraps around it, which imports torch's compiler to keep it out.

    Without that a training starts 1.6 s earlier and takes 150 MB less (two Zen 3 cores, torch 2.14).
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def step_with(self, gradients: dict[str, Tensor]) -> Callable[[], None]:
        """A step that reads `gradients`, in the order of the parameters, whenever it is called; for a graph.

        It is computed in pieces, with the same result. `step` must have been called before, and no state
        may be loaded afterwards.
        """
        (group,) = self.param_groups
        parameters = group["params"]
        states = [self.state[parameter] for parameter in parameters]
        counts = [state["step"] for state in states]
        moments = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        weights, slopes, means, squares = (
            flattened(pieces(tensors)) for tensors in (parameters, gradients.values(), *moments)
        )
        steps = [count for count, parts in zip(counts, pieces(parameters), strict=True) for _ in parts]

        @torch.no_grad()
        def step() -> None:
            torch._foreach_add_(counts, 1)
            torch._fused_adam_(
                weights,
                slopes,
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

        return step


class _Graph:  # pragma: no cover-cuda
    """The step on a full batch, by hand, as a CUDA graph: recorded once, replayed with one launch and not one a kernel.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    WARM_UP = 3  # steps, in which cuDNN and cuBLAS choose kernels and take their workspaces

    def __init__(self, trainer: Trainer) -> None:
        self._device = trainer.device
        self._images = trainer.images[: trainer.batch_size].clone()
        self._eps = torch.zeros(len(self._images), trainer.model.z_dim, device=self._device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            dtype = torch.bfloat16 if trainer.bf16 else torch.float32
            self._compute = compute = GradientsByHand(trainer.model, len(self._images), dtype)  # keeps its memory
            # What is computed aside has a lower priority, also within the graph.
            stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), trainer.rehearsal():
                trainer.step(self._images, self._eps)  # makes Adam's moments
                trainer.model.zero_grad(set_to_none=True)
                adam = trainer.optimizer.step_with(compute.gradients)
                for _ in range(self.WARM_UP):
                    compute(self._images, self._eps, trainer.kl_weight)
                    adam()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, stream=stream):
                self._terms = compute(self._images, self._eps, trainer.kl_weight)
                adam()

    def replay(self, images: Tensor, eps: Tensor) -> Tensor:
        """The terms (2, B) of one step; they hold until the next one."""
        with torch.cuda.device(self._device):
            self._images.copy_(images)
            self._eps.copy_(eps)
            self._graph.replay()
        return self._terms
