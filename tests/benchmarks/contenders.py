"""Who is measured: the tutorial's loop, vae itself, and pythae with the same layers.

Each has the same four tasks on the same images; a task is what its user would wait for, from images
in memory to numbers, codes or images in memory.
"""

import tempfile
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from vaecli import data, engine
from vaecli.allocator import keep_freed_memory
from vaecli.loss import Terms
from vaecli.runtime import NOISE_BLOCK, be_exact, noise
from vaecli.schedule import Schedule
from vaecli.training import Trainer

Z_DIM, BATCH, SEED = 4, 100, 0


class Contender(Protocol):
    """What each contender computes; the names of its methods are the tasks."""

    def train(self) -> None: ...  # an epoch over the training images

    def test(self) -> None: ...  # the mean loss of the test images

    def encode(self) -> None: ...  # the codes of the training images

    def sample(self) -> None: ...  # new images from the prior, as bytes


class Pictures(Dataset[tuple[Tensor, int]]):
    """A split as torchvision's MNIST serves it: a PIL image at a time, through ToTensor."""

    def __init__(self, split: data.Split) -> None:
        assert split.labels is not None
        self.images, self.labels, self.transform = split.images, split.labels, ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index].numpy(), mode="L")
        return self.transform(image), int(self.labels[index])


class PlainVAE(nn.Module):
    """The tutorial's eight layers, as a reader of the tutorial writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.linear1mean = nn.Linear(64 * 7 * 7, Z_DIM)
        self.linear1logvar = nn.Linear(64 * 7 * 7, Z_DIM)
        self.linear2 = nn.Linear(Z_DIM, 64 * 7 * 7)
        self.deconv1 = nn.ConvTranspose2d(64, 64, 3, stride=2)
        self.deconv2 = nn.ConvTranspose2d(64, 32, 3, stride=2)
        self.conv3 = nn.Conv2d(32, 1, 4)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)
        return self.linear1mean(h), self.linear1logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        h = F.relu(self.linear2(z)).view(-1, 64, 7, 7)
        logits: Tensor = self.conv3(F.relu(self.deconv2(F.relu(self.deconv1(h)))))
        return logits

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x)
        z = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
        return self.decode(z), mean, logvar


class Tutorial:
    """The tutorial's loop: DataLoader, ToTensor, float32, default Adam, `.item()` each step."""

    def __init__(self, train: data.Split, test: data.Split, samples: int, device: torch.device) -> None:
        self.samples, self.device = samples, device
        self.shuffled = DataLoader(Pictures(train), BATCH, shuffle=True)
        self.train_loader = DataLoader(Pictures(train), BATCH)
        self.test_loader = DataLoader(Pictures(test), BATCH)
        self.model = PlainVAE().to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def loss(self, x: Tensor) -> Tensor:
        logits, mean, logvar = self.model(x)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
        return (reconstruction + kl) / len(x)

    def train(self) -> None:
        self.model.train()
        total = 0.0
        for x, _ in self.shuffled:
            loss = self.loss(x.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(x)

    def test(self) -> None:
        self.model.eval()
        with torch.no_grad():
            sum(self.loss(x.to(self.device)).item() * len(x) for x, _ in self.test_loader)

    def encode(self) -> None:
        self.model.eval()
        with torch.no_grad():
            codes = [self.model.encode(x.to(self.device))[0].cpu() for x, _ in self.train_loader]
        torch.cat(codes)

    def sample(self) -> None:
        self.model.eval()
        with torch.no_grad():
            for start in range(0, self.samples, BATCH):
                z = torch.randn(min(BATCH, self.samples - start), Z_DIM, device=self.device)
                self.model.decode(z).sigmoid().mul(255).round().byte().cpu()


class Vae:
    """What the commands of vae call."""

    def __init__(
        self, train: data.Split, test: data.Split, samples: int, device: torch.device, bf16: bool = False
    ) -> None:
        keep_freed_memory()  # as the command does
        be_exact(device)
        self.samples, self.device = samples, device
        self.model = engine.prepare(engine.new_model(Z_DIM, SEED), device)
        self.train_images, self.test_images = train.images.to(device), test.images.to(device)
        self.trainer = Trainer(self.model, self.train_images, schedule=Schedule(1e-3), batch_size=BATCH, bf16=bf16)
        self.epochs = 0

    def train(self) -> None:
        self.epochs += 1
        self.trainer.epoch(self.epochs, SEED, log_interval=200)

    def test(self) -> None:
        terms: Terms = engine.evaluate(self.model, self.test_images, seed=SEED, device=self.device)
        engine.Losses.mean_of(terms)

    def encode(self) -> None:
        self.model.eval()
        for _, images in engine.blocks(self.train_images):
            for table in engine.encode(self.model, images, self.device):
                table.cpu()

    def sample(self) -> None:
        self.model.eval()
        for block, start in enumerate(range(0, self.samples, NOISE_BLOCK)):
            z = noise(SEED, "prior", block, Z_DIM)[: self.samples - start]
            engine.decode(self.model, z.to(self.device))


class VaeBf16(Vae):
    """vae with `--precision bf16`; everything but training is float32 as ever."""

    def __init__(self, train: data.Split, test: data.Split, samples: int, device: torch.device) -> None:
        super().__init__(train, test, samples, device, bf16=True)


class Pythae:
    """pythae's own VAE, trainer and sampler around the same layers."""

    def __init__(self, train: data.Split, test: data.Split, samples: int, device: torch.device) -> None:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.samplers import NormalSampler
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

        plain = PlainVAE()

        class Encoder(BaseEncoder):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.latent_dim = Z_DIM
                self.layers = plain

            def forward(self, x: Tensor) -> ModelOutput:
                mean, logvar = self.layers.encode(x)
                return ModelOutput(embedding=mean, log_covariance=logvar)

        class Decoder(BaseDecoder):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layers = plain

            def forward(self, z: Tensor) -> ModelOutput:
                return ModelOutput(reconstruction=self.layers.decode(z).sigmoid())

        def dataset(split: data.Split) -> BaseDataset:
            assert split.labels is not None
            return BaseDataset(engine.to_unit(split.images, torch.device("cpu")), split.labels)

        self.samples = samples
        config = VAEConfig(input_dim=(1, 28, 28), latent_dim=Z_DIM, reconstruction_loss="bce")
        self.model = VAE(config, Encoder(), Decoder())
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=1,
                learning_rate=1e-3,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=BATCH,
                no_cuda=device.type != "cuda",
            )
            self.trainer = BaseTrainer(self.model, dataset(train), dataset(test), settings)
        self.trainer.set_optimizer()
        self.trainer.callback_handler = CallbackHandler([TrainingCallback()], self.model)  # no bars
        self.sampler = NormalSampler(self.model)

    def train(self) -> None:
        self.trainer.train_step(1)

    def test(self) -> None:
        self.trainer.eval_step(1)

    def encode(self) -> None:
        self.model.eval()
        with torch.no_grad():
            for x in torch.split(self.trainer.train_dataset.data, BATCH):
                self.model.embed(x.to(self.trainer.device)).cpu()

    def sample(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.sampler.sample(self.samples, batch_size=BATCH).mul(255).round().byte().cpu()


CONTENDERS: dict[str, Callable[..., Contender]] = {
    "tutorial": Tutorial,
    "vae fp32": Vae,
    "vae bf16": VaeBf16,
    "pythae": Pythae,
}
