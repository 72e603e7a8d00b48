"""The training step and its epoch, on a CPU and on a GPU.

What made it fast has its figures where it is done: channels-last in `engine.prepare`, memory that is
kept in `allocator`, faster forms of layers in `layers`, and what a GPU computes in `by_hand` and `fused`. Here it is
that the split is one uint8 tensor, that losses stay on the device until someone asks, and that Adam
takes all parameters at once. `make bench` measures the whole.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from vaecli.adam import Adam
from vaecli.engine import Losses, to_unit
from vaecli.errors import DivergedError
from vaecli.fused import gradients_by_hand
from vaecli.loss import Terms, negative_elbo
from vaecli.mixed import in_bf16
from vaecli.model import ConvVAE
from vaecli.runtime import generator
from vaecli.schedule import Schedule

_RECORDING = threading.Lock()


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
        self._by_hand: _Steps | None = None  # on a GPU, from its first epoch

    def epoch(
        self,
        epoch: int,
        seed: int,
        *,
        steps: int | None = None,
        log_interval: int = 0,
        on_step: Callable[[int, float | None], None] = lambda images, loss: None,
    ) -> Losses:
        """One pass over the images, in this epoch's own order and with its own noise, or its first `steps`.

        `on_step` hears how many images a step took and, every `log_interval` steps, the batch's loss.
        Returns the running means of the epoch. Raises DivergedError if a loss is not finite.
        """
        count = len(self.images)
        order, eps = self._draw(epoch, seed)
        if self._on_cuda and not self._by_hand and count >= self.batch_size:  # pragma: no cover-cuda
            self._by_hand = _Graph(self)
        # The terms (2, N), read at each log interval and at the end only.
        seen = self._by_hand.begin(order, eps) if self._by_hand else torch.empty(2, count, device=self.device)
        self.model.train()
        starts = range(0, count, self.batch_size)
        for step, start in enumerate(starts[:steps], 1):
            batch = slice(start, min(start + self.batch_size, count))
            self._follow_schedule(epoch - 1 + (step - 1) / len(starts))
            if self._by_hand and start + self.batch_size <= count:
                self._by_hand.step()
            else:
                seen[:, batch] = self.step(self.images[order[batch]], eps[batch])
            size = batch.stop - start
            if log_interval and step % log_interval == 0:
                on_step(size, float(seen[:, batch].sum() / size))
                self._check_finite(seen[:, : batch.stop], epoch)
            else:
                on_step(size, None)
        seen = seen[:, : batch.stop]
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
        self.optimizer.prepare()
        states = (self.optimizer.state[parameter].values() for parameter in self.model.parameters())
        values = [*self.model.parameters(), *(value for state in states for value in state)]
        before = [value.detach().clone() for value in values]
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(values, before)

    def _check_finite(self, seen: Tensor, epoch: int) -> None:
        finite = seen.isfinite().all(dim=0)
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0]) // self.batch_size + 1
            raise DivergedError(f"the loss is not finite at epoch {epoch}, step {step}")


class _Steps:
    """The steps of an epoch's full batches, by hand, with nothing that a GPU would wait for between them.

    They read the batches from memory of their own, each during the step before, and leave the terms there.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._split, self._model, self._optimizer = trainer.images, trainer.model, trainer.optimizer
        self._kl_weight = trainer.kl_weight
        (count, _, _), size, device = self._split.shape, trainer.batch_size, trainer.device
        # A batch more than there is: the last step reads a next one, too.
        self._images = torch.zeros(count + size, 28, 28, dtype=torch.uint8, device=device)
        self._eps = torch.zeros(count + size, self._model.z_dim, device=device)
        self._seen = torch.zeros(2, count, device=device)
        self._rows = torch.arange(size, device=device)  # of the batch that is read (B,)
        self._ends = torch.arange(size, count + 1, size, device=device)  # behind the last row of each batch (N // B,)
        self._optimizer.prepare()
        self._compute = gradients_by_hand(self._model, size, torch.bfloat16 if trainer.bf16 else torch.float32)

    def begin(self, order: Tensor, eps: Tensor) -> Tensor:
        """Take an epoch's images in this order, with this noise; returns where its terms (2, N) will be."""
        torch.index_select(self._split, 0, order, out=self._images[: len(order)])
        self._eps[: len(eps)] = eps
        self._rewind()
        return self._seen

    def step(self) -> None:
        """The step of Adam on the next batch."""
        self._compute(self._kl_weight, begin=self._begin, update=self._update, read_next=self._read_next)

    def _begin(self) -> None:
        self._optimizer.begin_step()
        self._rows += len(self._rows)

    def _rewind(self) -> None:
        torch.arange(len(self._rows), out=self._rows)
        self._read()

    def _read(self) -> None:
        self._compute.read(self._images, self._eps, self._rows)

    def _read_next(self, terms: Tensor) -> None:
        # By comparing: writing at an index, torch would sort these first, to be deterministic.
        batches, size = len(self._ends), len(self._rows)
        full = self._seen[:, : batches * size].view(2, batches, size)
        torch.where((self._ends == self._rows[0])[:, None], terms[:, None], full, out=full)
        self._read()

    def _update(self, *layers: str) -> None:
        of_layers: dict[Tensor, Tensor] = {
            parameter: self._compute.gradients[name]
            for name, parameter in self._model.named_parameters()
            if name.rpartition(".")[0] in layers
        }
        self._optimizer.step_of(of_layers)


class _Graph(_Steps):  # pragma: no cover-cuda
    """The same as a CUDA graph: recorded once, replayed with one launch for all kernels.

    It has the addresses of weights and moments, so no state may be loaded that replaces them.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    WARM_UP = 3  # steps, in which cuDNN and cuBLAS choose kernels and take their workspaces

    def __init__(self, trainer: Trainer) -> None:
        with torch.cuda.device(trainer.device):
            super().__init__(trainer)
            self._graph = torch.cuda.CUDAGraph()
            # What is computed aside has a lower priority, also within the graph.
            stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), trainer.rehearsal():
                for _ in range(self.WARM_UP):
                    self._rewind()
                    super().step()
            torch.cuda.current_stream().wait_stream(stream)
            # Meanwhile other threads of a notebook may use the GPU, but not record, which waits for all that it does.
            with _RECORDING, torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    super().step()
                finally:  # else the end of the recording would fail in place of what failed within
                    self._compute.aside.join()

    def step(self) -> None:
        self._graph.replay()
