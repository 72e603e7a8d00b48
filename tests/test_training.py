"""The training step and its epoch: exact means, seeds that decide everything, losses that must be finite."""

import warnings

import pytest
import torch
from conftest import needs_cuda

from vaecli import data, engine
from vaecli.errors import DivergedError
from vaecli.loss import negative_elbo
from vaecli.runtime import be_exact, generator
from vaecli.schedule import Schedule
from vaecli.training import Trainer

CPU = torch.device("cpu")
RECIPE = Schedule(1e-3)
CHANGING = Schedule(3e-3, beta=2.0, cosine_epochs=4, kl_warmup=3)


def trainer(
    images: torch.Tensor,
    batch_size: int,
    schedule: Schedule = RECIPE,
    *,
    seed: int = 0,
    device: torch.device = CPU,
    bf16: bool = False,
) -> Trainer:
    model = engine.prepare(engine.new_model(2, seed), device)
    return Trainer(model, images.to(device), schedule=schedule, batch_size=batch_size, bf16=bf16)


def everything(trained: Trainer) -> list[torch.Tensor]:
    """Copies of all that a trainer carries from step to step."""
    states = [trained.optimizer.state[parameter] for parameter in trained.model.parameters()]
    return [value.detach().clone() for value in [*trained.model.parameters(), *(v for s in states for v in s.values())]]


def test_epoch_mean_weighs_images_and_not_batches(digits: data.Split) -> None:
    """With a learning rate of nothing, any batch size sees the same model, a short last batch included."""
    whole, ragged = (trainer(digits.images, batch_size, Schedule(1e-12)).epoch(1, 0) for batch_size in (150, 40))
    assert ragged.loss == pytest.approx(whole.loss, abs=1e-4)
    assert ragged.loss == pytest.approx(ragged.reconstruction + ragged.kl, abs=1e-12)


@pytest.mark.parametrize("schedule", [RECIPE, CHANGING], ids=["recipe", "changing"])
def test_training_equals_the_tutorials_loop(digits: data.Split, schedule: Schedule) -> None:
    """Two epochs of ours against plain code with default Adam, the same order and the same noise."""
    images, seed = digits.images, 3
    ours = trainer(images, 40, schedule, seed=seed)
    losses = [ours.epoch(epoch, seed).loss for epoch in (1, 2)]

    plain = engine.new_model(2, seed)
    optimizer = torch.optim.Adam(plain.parameters(), lr=schedule.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * 4)
    for epoch, ours_said in enumerate(losses):
        order = torch.randperm(len(images), generator=generator(seed, "permutation", epoch + 1))
        eps = torch.randn(len(images), 2, generator=generator(seed, "training noise", epoch + 1))
        total = 0.0
        for start in range(0, len(images), 40):
            x = images[order[start : start + 40]].unsqueeze(1) / 255
            logits, posterior = plain(x, eps[start : start + 40])
            terms = negative_elbo(logits, posterior, x)
            weight = 1.0 if schedule == RECIPE else 2.0 * min(1, (epoch + start / 40 / 4) / 3)
            optimizer.zero_grad()
            (terms.reconstruction + weight * terms.kl).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule != RECIPE:
                cosine.step()
            total += terms.loss().sum().item()
        assert ours_said == pytest.approx(total / len(images), abs=1e-2)
    for one, other in zip(ours.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_steps_are_reported_with_a_loss_every_interval(digits: data.Split) -> None:
    heard: list[tuple[int, float | None]] = []
    trainer(digits.images, 40).epoch(1, 0, log_interval=2, on_step=lambda n, loss: heard.append((n, loss)))
    assert [count for count, _ in heard] == [40, 40, 40, 30]
    assert [loss is not None for _, loss in heard] == [False, True, False, True]
    assert all(loss is None or 0 < loss < 1000 for _, loss in heard)


def test_divergence_names_epoch_and_step(digits: data.Split) -> None:
    with pytest.raises(DivergedError, match=r"epoch 7, step 2\b.*--lr"):
        trainer(digits.images, 40, Schedule(1e30)).epoch(7, 0)


def test_bf16_is_near_and_stays_out_of_weights_and_losses(digits: data.Split) -> None:
    single, half = (trainer(digits.images, 50, bf16=bf16) for bf16 in (False, True))
    losses = [each.epoch(1, 0).loss for each in (single, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]
    assert {value.dtype for value in everything(half)} == {torch.float32}


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_rehearsal_leaves_no_trace(digits: data.Split, steps_before: int) -> None:
    """As before a graph is captured, whether Adam has moments already or none."""
    images, eps = digits.images[:50], torch.ones(50, 2)
    plain, rehearsed = trainer(images, 50), trainer(images, 50)
    for each in (plain, rehearsed):
        for _ in range(steps_before):
            each.step(images, eps)
    before = everything(rehearsed)
    with rehearsed.rehearsal():
        for _ in range(3):
            rehearsed.step(images, -eps)
        places = [parameter.data_ptr() for parameter in rehearsed.model.parameters()]
    if steps_before:
        assert all(map(torch.equal, everything(rehearsed), before))
    assert places == [parameter.data_ptr() for parameter in rehearsed.model.parameters()]
    plain.step(images, eps)
    rehearsed.step(images, eps)
    assert all(map(torch.equal, everything(rehearsed), everything(plain)))


@needs_cuda
@pytest.mark.parametrize("schedule", [RECIPE, CHANGING], ids=["recipe", "changing"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_graph_computes_what_its_steps_do(digits: data.Split, bf16: bool, schedule: Schedule) -> None:
    """A replayed epoch is bit-exact, also recorded anew half-way; step by step it is the same training."""
    cuda = torch.device("cuda")
    be_exact(cuda)

    def two_epochs(forget: bool = False, eager: bool = False) -> tuple[list[torch.Tensor], float]:
        trained = trainer(digits.images, 40, schedule, device=cuda, bf16=bf16)  # the last batch has 30
        if eager:
            trained._on_cuda = False  # by autograd
        trained.epoch(1, 0)
        if forget:
            trained._by_hand = None  # as after a resume
        loss = trained.epoch(2, 0).loss
        return everything(trained), loss

    (replayed, loss), (again, same), (eager, near) = two_epochs(), two_epochs(forget=True), two_epochs(eager=True)
    assert all(map(torch.equal, replayed, again))
    assert loss == same == pytest.approx(near, rel=1e-3)
    apart = [float((one - other).abs().mean()) for one, other in zip(replayed[:16], eager[:16], strict=True)]
    assert bf16 or max(apart) < 1e-4  # weights; with a frozen learning rate 2e-3, with a frozen KL weight 5e-4


@needs_cuda
def test_no_step_waits_for_the_gpu(digits: data.Split) -> None:
    """Neither a graph nor the short last batch; torch raises where a call would."""
    trained = trainer(digits.images, 40, CHANGING, device=torch.device("cuda"))
    trained.epoch(1, 0)  # records the graph
    order, eps = trained._draw(2, 0)
    assert trained._by_hand
    with warnings.catch_warnings(action="ignore"):  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        trained._by_hand.begin(order, eps)
        trained._follow_schedule(1.5)
        trained._by_hand.step()
        trained.step(trained.images[order[120:]], eps[120:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_trains_as_the_cpu_does(digits: data.Split, monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """With the same order and noise, which each device draws its own."""
    cuda = torch.device("cuda")
    be_exact(cuda)
    on_cpu, on_cuda = trainer(digits.images, 50), trainer(digits.images, 50, device=cuda, bf16=bf16)
    draw = on_cpu._draw
    monkeypatch.setattr(on_cuda, "_draw", lambda epoch, seed: [drawn.to(cuda) for drawn in draw(epoch, seed)])
    for epoch in range(1, 6):
        assert on_cuda.epoch(epoch, 0).loss == pytest.approx(on_cpu.epoch(epoch, 0).loss, abs=0.5)


def test_the_loss_that_is_heard_is_the_batchs_own(digits: data.Split) -> None:
    heard: list[float] = []
    mean = trainer(digits.images, 40, Schedule(1e-12)).epoch(
        1, 0, log_interval=1, on_step=lambda images, loss: heard.append(loss or 0)
    )
    assert mean.loss == pytest.approx((40 * sum(heard[:3]) + 30 * heard[3]) / 150, rel=1e-5)


def test_divergence_ends_an_epoch_at_the_next_interval(digits: data.Split) -> None:
    heard: list[int] = []
    with pytest.raises(DivergedError):
        trainer(digits.images, 10, Schedule(1e30)).epoch(
            1, 0, log_interval=2, on_step=lambda images, loss: heard.append(images)
        )
    assert len(heard) == 2
