"""Gradients by hand are autograd's, and a step in pieces is Adam's."""

import pytest
import torch

from vaecli import data, engine
from vaecli.by_hand import GradientsByHand, pieces
from vaecli.loss import negative_elbo
from vaecli.runtime import be_exact
from vaecli.schedule import Schedule
from vaecli.training import Trainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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
    compute(digits.images[-count:].to(place), -eps.to(place, model_dtype), torch.ones((), device=place))
    model.load_state_dict(weights)  # nothing of the first call is left in the second
    terms = compute(images.to(place), eps.to(place, model_dtype), kl_weight.to(place, model_dtype))

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


def test_training_by_hand_is_training(digits: data.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs on the CPU as a GPU does them, the short last batch by autograd."""
    images, cpu = digits.images, torch.device("cpu")

    def trainer() -> Trainer:
        model = engine.prepare(engine.new_model(2, 0), cpu)
        return Trainer(model, images, schedule=Schedule(1e-3), batch_size=40)

    plain, ours = trainer(), trainer()
    with ours.rehearsal():
        ours.step(images[:40], torch.zeros(40, 2))
    compute = GradientsByHand(ours.model, 40, torch.float32)
    adam = ours.optimizer.step_with(compute.gradients)

    def run(images: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        if len(images) < 40:
            return ours.step(images, eps)
        terms = compute(images, eps, ours.kl_weight)
        adam()
        return terms

    monkeypatch.setattr(ours, "run", run)
    for epoch in (1, 2):
        assert ours.epoch(epoch, 0).loss == pytest.approx(plain.epoch(epoch, 0).loss, rel=1e-6)
    for one, other in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert float((one - other).detach().abs().mean()) < 1e-6
        state, expected = ours.optimizer.state[one], plain.optimizer.state[other]
        assert state["step"] == expected["step"] == 8


def test_pieces_are_the_tensor_itself() -> None:
    tensor = torch.zeros(64, 64, 3, 3).to(memory_format=torch.channels_last)  # 36,864
    parts = pieces([tensor, torch.zeros(7)])
    assert [[len(piece) for piece in of_one] for of_one in parts] == [[8192, 8192, 8192, 8192, 4096], [7]]
    for piece in parts[0]:
        piece += 1
    assert tensor.eq(1).all()


def test_many_numbers_are_some_dozens_of_pieces() -> None:
    assert sum(map(len, pieces([torch.empty(1_500_000), torch.empty(100_000)]))) == 32
    for of_one in pieces([torch.empty(300_160, dtype=torch.bfloat16)]):
        assert all(piece.data_ptr() % 16 == 0 for piece in of_one)
