"""The epochs of a training, each of them safe in the run folder before the next begins."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator

import torch

from vaecli import checkpoint, data, engine
from vaecli.errors import DivergedError, Interrupted, VaeError
from vaecli.metadata import DataSource, Metadata
from vaecli.metrics import EpochRecord, read_metrics, with_speeds, write_metrics
from vaecli.run import METRICS, STATE, Settings, check_path, resume_command
from vaecli.runtime import emulates_bf16
from vaecli.schedule import Schedule
from vaecli.services import Observer
from vaecli.services.resume import Trained, require_settings, trained, training_of
from vaecli.training import Trainer


class Run:
    """A model on its way through the epochs, and its folder."""

    def __init__(
        self,
        folder: str,
        settings: Settings,
        device: torch.device,
        train_split: data.Split,
        test_split: data.Split,
        observer: Observer,
        check_folder: Callable[[], None] | None,
    ) -> None:
        self._check_folder = check_folder or (lambda: None)
        self.folder, self.settings, self.device, self.observer = folder, settings, device, observer
        self.train_images = train_split.images.to(device)
        self.test_images = test_split.images.to(device)
        self.source = DataSource(settings.dataset, train_split.sha256(), test_split.sha256())
        self.class_names = max(train_split.class_names, test_split.class_names, key=len)
        self.model = engine.prepare(engine.new_model(settings.z_dim, settings.seed), device)
        self.trainer = Trainer(
            self.model,
            self.train_images,
            schedule=Schedule(
                lr=settings.lr,
                beta=settings.beta,
                cosine_epochs=settings.epochs if settings.lr_schedule == "cosine" else None,
                kl_warmup=settings.kl_warmup,
            ),
            batch_size=settings.batch_size,
            bf16=settings.precision == "bf16",
        )
        self.history: list[EpochRecord] = []
        self._committed = 0
        self._keep()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        observer.note(
            f"ConvVAE, z_dim {settings.z_dim}, {parameters:,} parameters; {settings.dataset}, "
            f"{len(self.train_images):,} training and {len(self.test_images):,} test images; "
            f"{device}, {settings.precision}."
        )
        if settings.precision == "bf16" and emulates_bf16(device):
            observer.note("This processor has no instructions for bf16; fp32 is likely to be faster.")
        if settings.kl_warmup >= settings.epochs:
            observer.note(
                f"The KL term has its full weight only after epoch {settings.kl_warmup}; "
                f"this run ends after epoch {settings.epochs}."
            )

    def restore(self) -> None:
        """Go back to the end of the last finished epoch. Raises VaeError if the state is of another run."""
        metadata = checkpoint.load_state(os.path.join(self.folder, STATE), self.model, self.trainer.optimizer)
        # Data that moved have another name, which only the user can have written into config.json.
        if dataclasses.replace(metadata.data, dataset=self.source.dataset) != self.source:
            raise VaeError(f"The data set '{self.settings.dataset}' has changed since the run began. Restore it.")
        require_settings(self.folder, self.settings, metadata)
        try:
            measured = read_metrics(os.path.join(self.folder, METRICS))
        except VaeError:  # the state has all but the speeds
            measured = []
        self.history = with_speeds(metadata.history, measured)
        self._committed = len(self.history)
        self._keep()
        self.observer.note(f"Going on after epoch {len(self.history)}.")

    def train(self) -> Trained:
        """Train to the last epoch; every finished one is safe on disk before the next begins."""
        epochs = self.settings.epochs
        with self._last_epoch_kept():
            for epoch in range(len(self.history) + 1, epochs + 1):
                began = time.perf_counter()
                self.history.append(self._epoch(epoch))
                self._keep()
                self._commit(epoch)
                seconds = time.perf_counter() - began
                self.observer.finish_epoch(self.history[-1], epochs, seconds * (epochs - epoch))
        return trained(check_path(self.folder, epochs), self.history)

    def try_one_batch(self) -> None:
        """One training step and one block of the test pass, then say that it works."""
        self.observer.begin("dry run", min(self.settings.batch_size, len(self.train_images)))
        began = time.perf_counter()
        self.trainer.epoch(1, self.settings.seed, steps=1)
        engine.evaluate(self.model, self.test_images[: engine.GPU_CHUNK], seed=self.settings.seed, device=self.device)
        seconds = time.perf_counter() - began
        self.observer.note(f"Dry run: a training step and a block of the test pass work; they took {seconds:.1f} s.")

    def _epoch(self, epoch: int) -> EpochRecord:
        """One pass over each split."""
        label, count = f"epoch {epoch}/{self.settings.epochs}", len(self.train_images)
        self.observer.begin(label, count)
        began = time.perf_counter()
        training = self.trainer.epoch(
            epoch, self.settings.seed, log_interval=self.settings.log_interval, on_step=self.observer.advance
        )
        seconds = time.perf_counter() - began
        self.observer.begin(f"{label}, test", len(self.test_images))
        test = self._test(epoch)
        self._require_finite(epoch)
        return EpochRecord(
            epoch=epoch,
            train_loss=training.loss,
            train_reconstruction=training.reconstruction,
            train_kl=training.kl,
            test_loss=test.loss,
            test_reconstruction=test.reconstruction,
            test_kl=test.kl,
            seconds=round(seconds, 3),
            images_per_second=round(count / seconds, 1),
        )

    def _test(self, epoch: int) -> engine.Losses:
        terms = engine.evaluate(
            self.model,
            self.test_images,
            seed=self.settings.seed,
            device=self.device,
            on_block=self.observer.advance,
        )
        if not terms.loss().isfinite().all():
            raise DivergedError(f"the test loss of epoch {epoch} is not finite")
        return engine.Losses.mean_of(terms)

    def _require_finite(self, epoch: int) -> None:
        """A large gradient's square can overflow while the loss does not; no state with it could be read again."""
        moments = (value for state in self.trainer.optimizer.state.values() for value in state.values())
        largest = torch.nn.utils.get_total_norm([*self.model.parameters(), *moments], math.inf)
        if not largest.isfinite():  # of all at once: each kernel and each reading costs time on a GPU
            raise DivergedError(f"Adam's moments are not finite after epoch {epoch}")

    def _commit(self, epoch: int) -> None:
        """Put an epoch on disk. The state comes last: until it is there, the epoch has not happened."""
        self._check_folder()
        if epoch % self.settings.checkpoint_every == 0 or epoch == self.settings.epochs:
            self._write_check()
        write_metrics(os.path.join(self.folder, METRICS), self.history)
        checkpoint.save_state(os.path.join(self.folder, STATE), self.model, self.trainer.optimizer, self._metadata())
        self._committed = epoch

    def _keep(self) -> None:
        """Remember the weights as they are: an interrupted epoch must not get into the last checkpoint."""
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self._kept = weights, self._metadata()  # in one step: a signal may arrive between two

    def _write_check(self) -> str:
        weights, metadata = self._kept
        path = check_path(self.folder, metadata.epoch)
        checkpoint.save(path, weights, metadata)
        return path

    @contextlib.contextmanager
    def _last_epoch_kept(self) -> Iterator[None]:
        """Whatever ends the training early, the last finished epoch has a weights file."""
        try:
            yield
        except (Interrupted, KeyboardInterrupt, DivergedError) as stop:  # in a notebook, Ctrl-C is the second
            self.observer.close()  # a second Ctrl-C ends the process at once, which shall leave no bar
            with contextlib.suppress(VaeError):  # a full disk, say: the state of the last commit is there
                self._keep_last_epoch()
            if not isinstance(stop, DivergedError):
                self.observer.note(f"Go on with: {resume_command(self.folder)}")
            raise

    def _keep_last_epoch(self) -> None:
        epoch = self._kept[1].epoch
        if epoch > self._committed:  # stopped between an epoch's end and its commit
            self._commit(epoch)
        if epoch:
            self._check_folder()
            self.observer.note(f"Kept the weights of epoch {epoch} in {self._write_check()}")

    def _metadata(self) -> Metadata:
        return Metadata(
            z_dim=self.settings.z_dim,
            training=training_of(self.settings),
            data=self.source,
            class_names=self.class_names,
            epoch=len(self.history),
            history=tuple(record.without_speed() for record in self.history),
        )
