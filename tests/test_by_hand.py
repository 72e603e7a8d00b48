"""Gradients by hand are autograd's, and a step in pieces is Adam's."""

import pytest
import torch
from conftest import needs_cuda
from kernels_on_cpu import KernelsThatTouch
from races import MAIN, Races, Stream

from vaecli import data, engine
from vaecli.adam import pieces
from vaecli.by_hand import GradientsByHand
from vaecli.errors import DivergedError
from vaecli.fused import FusedGradients
from vaecli.loss import negative_elbo
from vaecli.runtime import be_exact
from vaecli.schedule import Schedule
from vaecli.training import Trainer, _Steps


@pytest.mark.parametrize(
    ("device", "dtype", "model_dtype", "tolerance"),
    [
        ("cpu", torch.float64, torch.float64, 1e-12),
        ("cpu", torch.bfloat16, torch.float32, 0.15),
        pytest.param("cuda", torch.float32, torch.float32, 1e-3, marks=needs_cuda),
        pytest.param("cuda", torch.bfloat16, torch.float32, 0.15, marks=needs_cuda),
    ],
)
@pytest.mark.parametrize(("z_dim", "count"), [(1, 7), (2, 40), (3, 1), (100, 10)])
def test_gradients_are_those_of_autograd(
    digits: data.Split,
    device: str,
    dtype: torch.dtype,
    model_dtype: torch.dtype,
    tolerance: float,
    z_dim: int,
    count: int,
) -> None:
    place = torch.device(device)
    be_exact(place)
    plain = engine.new_model(z_dim, 0).double()
    model = engine.prepare(engine.new_model(z_dim, 0).to(model_dtype), place)
    images, eps, kl_weight = digits.images[:count], torch.randn(count, z_dim), torch.tensor(0.7)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(engine.new_model(z_dim, 1).state_dict())
    compute = GradientsByHand(model, count, dtype)
    rows = torch.arange(count, device=place)

    def read(images: torch.Tensor, noise: torch.Tensor) -> None:
        compute.read(images.to(place), noise.to(place, model_dtype), rows)

    read(digits.images[-count:], -eps)
    compute(torch.ones((), device=place), read_next=lambda terms: read(images, eps))
    model.load_state_dict(weights)  # nothing of the first call is left in the second
    terms = compute(kl_weight.to(place, model_dtype))

    x = engine.to_unit(images, torch.device("cpu")).double()
    logits, posterior = plain(x, eps.double())
    expected = negative_elbo(logits, posterior, x)
    expected.loss(kl_weight.double()).mean().backward()  # type: ignore[no-untyped-call]
    rounding = 1e-4 if dtype == model_dtype else 0.2
    torch.testing.assert_close(terms.cpu().double(), torch.stack(list(expected)).detach(), rtol=0, atol=rounding)
    for name, parameter in plain.named_parameters():
        gradient = compute.gradients[name].cpu().double()
        assert parameter.grad is not None
        assert (gradient - parameter.grad).norm() <= tolerance * parameter.grad.norm(), name


def test_a_layer_is_updated_once_nothing_waits_for_it(digits: data.Split) -> None:
    """Its gradients are there, and whatever becomes of its weights, and of the batch, changes no other's."""

    def gradients(spoil: bool) -> dict[str, torch.Tensor]:
        model = engine.new_model(2, 0)
        compute = GradientsByHand(model, 40, torch.float32)
        rows = torch.arange(40)
        compute.read(digits.images, torch.ones(80, 2), rows)
        ready: dict[str, torch.Tensor] = {}

        def update(*layers: str) -> None:
            for name, parameter in model.named_parameters():
                if name.partition(".")[0] in layers:
                    assert name not in ready
                    ready[name] = compute.gradients[name].clone()
                    parameter.data.fill_(float("nan"))

        def read_next(terms: torch.Tensor) -> None:
            assert terms.isfinite().all()
            compute.read(digits.images, torch.full((80, 2), float("nan")), rows + 40)

        if spoil:
            compute(torch.ones(()), update=update, read_next=read_next)
        else:
            compute(torch.ones(()))
        assert not spoil or ready.keys() == compute.gradients.keys()
        return ready or compute.gradients

    spoilt, plain = gradients(True), gradients(False)
    assert all(torch.equal(spoilt[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "schedule",
    [Schedule(1e-3), Schedule(3e-3, beta=2.0, cosine_epochs=4, kl_warmup=3)],
    ids=["recipe", "changing"],
)
def test_training_by_hand_is_training(digits: data.Split, schedule: Schedule) -> None:
    """Two epochs on the CPU as a GPU does them, the short last batch by autograd."""
    plain, ours = (trainer(digits.images, schedule) for _ in range(2))
    ours._by_hand = _Steps(ours)
    for epoch in (1, 2):
        assert losses_of(ours, epoch) == pytest.approx(losses_of(plain, epoch), rel=1e-5)
    for one, other in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert float((one - other).detach().abs().mean()) < 1e-5
        state, expected = ours.optimizer.state[one], plain.optimizer.state[other]
        assert state["step"] == expected["step"] == 8


def test_the_step_that_diverges_by_hand_is_named(digits: data.Split) -> None:
    ours = trainer(digits.images, Schedule(1e-3))
    ours._by_hand = _Steps(ours)
    order, eps = ours._draw(1, 0)
    eps[85] = float("inf")  # in the third batch
    ours._draw = lambda epoch, seed: (order, eps)  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="epoch 1, step 3"):
        ours.epoch(1, 0)


def losses_of(trained: Trainer, epoch: int) -> list[float | None]:
    """Of each batch, and their mean."""
    losses: list[float | None] = []
    mean = trained.epoch(epoch, 0, log_interval=1, on_step=lambda images, loss: losses.append(loss))
    return [*losses, mean.loss]


def trainer(images: torch.Tensor, schedule: Schedule) -> Trainer:
    model = engine.prepare(engine.new_model(2, 0), torch.device("cpu"))
    return Trainer(model, images, schedule=schedule, batch_size=40)


def test_pieces_are_the_tensors_themselves() -> None:
    tensor = torch.zeros(64, 64, 3, 3).to(memory_format=torch.channels_last)  # 36,864
    parts = pieces([tensor, torch.zeros(7)])
    assert [len(piece) for piece in parts] == [2048] * 18 + [7]
    for piece in parts[:-1]:
        piece += 1
    assert tensor.eq(1).all()


def test_many_numbers_are_some_dozens_of_pieces() -> None:
    assert len(pieces([torch.empty(1_500_000), torch.empty(100_000)])) == 32
    for piece in pieces([torch.empty(300_160, dtype=torch.bfloat16)]):
        assert piece.data_ptr() % 16 == 0


def test_races_are_found() -> None:
    """Of two streams at the same bytes, one of them writing, and of memory that is given away too early."""
    races = Races()
    with races:
        one, two = torch.zeros(4), torch.zeros(4)
        races.wait(1, MAIN)
        races.stream = 1
        one[:2].add_(1)
        three, four = two + 1, two + 1
        races.stream = MAIN
        _ = one[2:] + two[2:]
        assert not races.found
        _ = one[1:] + two[1:]
        assert set(races.found) == {"aten.add.Tensor after aten.add_.Tensor"}
        races.found.clear()
        races.wait(MAIN, 1)
        _ = one + three + four
        del two  # is main's, which has waited for stream 1
        _ = one + 1
        races.wait(1, MAIN)
        del three  # is stream 1's, which has waited for main
        races.stream = 1
        five = torch.zeros(1)
        races.stream = MAIN
        _ = four + 1
        assert not races.found
        del four  # is stream 1's, which has not
        races.stream = 1
        five += 1
    assert races.found == ["freed before aten.add.Tensor"]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("streams", "fused"), [(1, False), (2, False), (3, False), (6, False), (20, False), (2, True), (6, True)]
)
def test_no_two_streams_are_at_the_same_memory(
    digits: data.Split, monkeypatch: pytest.MonkeyPatch, streams: int, bf16: bool, fused: bool
) -> None:
    """Three steps with all that a graph records; and what would be, if one did not wait for the other."""

    def found() -> list[str]:
        model = engine.prepare(engine.new_model(2, 0), torch.device("cpu"))
        steps = _Steps(Trainer(model, digits.images[:9], schedule=Schedule(1e-3), batch_size=3, bf16=bf16))
        if fused:
            dtype = torch.bfloat16 if bf16 else torch.float32
            steps._compute = FusedGradients(model, 3, dtype, KernelsThatTouch(model.parameters()))
        races = Races()
        steps._compute.aside.streams = [Stream(races, number + 1) for number in range(streams)]  # type: ignore[misc]
        monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream(races, races.stream))
        monkeypatch.setattr("torch.cuda.stream", Stream.current)
        with races:
            steps.begin(torch.arange(9), torch.zeros(9, 2))
            for _ in range(3):
                steps.step()
        return races.found

    assert not found()
    if fused:
        with monkeypatch.context() as patch:  # weights that are read while Adam is at them
            store = FusedGradients._store_conv1
            patch.setattr(FusedGradients, "_store_conv1", lambda one, *given: (one._layers(), store(one, *given)))
            assert found()
    wait = Stream.wait_stream
    for deaf in (MAIN, 1):
        monkeypatch.setattr(
            Stream, "wait_stream", lambda one, other, deaf=deaf: None if one._number == deaf else wait(one, other)
        )
        assert found()
