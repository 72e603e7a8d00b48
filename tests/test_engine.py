"""Steps and epochs: exact means, seeds that decide everything, losses that must be finite."""

import pytest
import torch

from vaecli import data, engine
from vaecli.errors import DivergedError, VaeError
from vaecli.loss import negative_elbo
from vaecli.runtime import generator

CPU = torch.device("cpu")


def adam(model: torch.nn.Module, lr: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=lr, fused=True)


def one_epoch(images: torch.Tensor, batch_size: int, lr: float = 1e-3, **options: object) -> engine.Losses:
    model = engine.prepare(engine.new_model(2, 0), CPU)
    arguments = {"epoch": 1, "seed": 0, "beta": 1.0, "bf16": False} | options
    return engine.train_epoch(model, adam(model, lr), images, batch_size=batch_size, **arguments)  # type: ignore[arg-type]


def test_epoch_mean_weighs_images_and_not_batches(digits: data.Split) -> None:
    """With a learning rate of nothing, any batch size sees the same model, a short last batch included."""
    whole, ragged = (one_epoch(digits.images, batch_size, lr=1e-12) for batch_size in (150, 40))
    assert ragged.loss == pytest.approx(whole.loss, abs=1e-4)
    assert ragged.loss == pytest.approx(ragged.reconstruction + ragged.kl, abs=1e-12)


def test_training_equals_the_tutorials_loop(digits: data.Split) -> None:
    """One epoch of ours against plain code with default Adam, the same order and the same noise."""
    images, seed = digits.images, 3
    model = engine.prepare(engine.new_model(2, seed), CPU)
    losses = engine.train_epoch(model, adam(model), images, epoch=1, seed=seed, batch_size=40, beta=1.0, bf16=False)

    plain = engine.new_model(2, seed)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    order = torch.randperm(len(images), generator=generator(seed, "permutation", 1))
    eps = torch.randn(len(images), 2, generator=generator(seed, "training noise", 1))
    total = 0.0
    for start in range(0, len(images), 40):
        x = images[order[start : start + 40]].unsqueeze(1) / 255
        logits, posterior = plain(x, eps[start : start + 40])
        loss = negative_elbo(logits, posterior, x).loss().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(x)
    assert losses.loss == pytest.approx(total / len(images), abs=1e-2)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_every_epoch_has_its_own_order() -> None:
    orders = [torch.randperm(100, generator=generator(0, "permutation", epoch)) for epoch in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_steps_are_reported_with_a_loss_every_interval(digits: data.Split) -> None:
    heard: list[tuple[int, float | None]] = []
    one_epoch(digits.images, 40, log_interval=2, on_step=lambda n, loss: heard.append((n, loss)))
    assert [count for count, _ in heard] == [40, 40, 40, 30]
    assert [loss is not None for _, loss in heard] == [False, True, False, True]
    assert all(loss is None or 0 < loss < 1000 for _, loss in heard)


def test_divergence_names_epoch_and_step(digits: data.Split) -> None:
    with pytest.raises(DivergedError, match=r"epoch 7, step 2\b.*--lr"):
        one_epoch(digits.images, 40, lr=1e30, epoch=7)


def test_evaluation_depends_on_no_block_before_it(digits: data.Split) -> None:
    """Images 1,000 and later get the noise of their own block, however many come before."""
    model = engine.prepare(engine.new_model(2, 0), CPU)
    many = digits.images.repeat(8, 1, 1)  # 1,200 images
    terms = engine.evaluate(model, many, seed=0, device=CPU)
    shorter = engine.evaluate(model, many[:1100], seed=0, device=CPU)
    torch.testing.assert_close(terms.loss()[:1100], shorter.loss(), rtol=0, atol=1e-3)
    assert not torch.allclose(terms.reconstruction[:150], terms.reconstruction[1050:1200])


def test_pixels_are_rounded_not_truncated() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 255
    logits = torch.cat([levels, levels + 0.4 / 255, levels - 0.4 / 255]).clamp(0, 1).logit()
    pixels = engine.to_bytes(logits.reshape(1, 1, 1, -1))
    assert pixels.flatten().tolist() == list(range(256)) * 3


def test_pixels_survive_the_way_through_bytes(digits: data.Split) -> None:
    x = engine.to_unit(digits.images, CPU)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (0, 1)
    assert torch.equal(engine.to_bytes(x.logit()), digits.images)


def test_a_model_of_nonsense_is_an_error(digits: data.Split) -> None:
    model = engine.new_model(2, 0)
    with torch.no_grad():
        model.linear1mean.weight.fill_(3e38)
    with pytest.raises(VaeError, match="codes that are not finite"):
        engine.encode(model, digits.images, CPU)
    with pytest.raises(VaeError, match="pixels that are not finite"):
        engine.decode(model, torch.full((1, 2), float("nan")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_the_same_losses_as_the_cpu(digits: data.Split) -> None:
    model, cuda = engine.new_model(2, 0), torch.device("cuda")
    on_cpu = engine.evaluate(model, digits.images, seed=0, device=CPU)
    on_cuda = engine.evaluate(engine.prepare(model, cuda), digits.images, seed=0, device=cuda)
    torch.testing.assert_close(on_cpu.loss(), on_cuda.loss(), rtol=0, atol=0.1)
