"""Passes without gradients: their noise, pixels in and out, numbers that must be finite."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import needs_cuda

from vaecli import data, engine
from vaecli.errors import VaeError
from vaecli.loss import reconstruction

CPU = torch.device("cpu")


def test_evaluation_measures_the_samples_that_are_encoded(digits: data.Split) -> None:
    """Those of each block of 1,000, however many are computed at once."""
    model = engine.prepare(engine.new_model(2, 0), CPU).eval()
    assert model.in_place
    many = digits.images.repeat(17, 1, 1)[:2500]
    terms = engine.evaluate(model, many, seed=0, device=CPU)
    for block, images in engine.blocks(many):
        z = engine.sample_posterior(engine.encode(model, images, CPU), 0, block)
        with torch.inference_mode():
            expected = reconstruction(model.decode(z), engine.to_unit(images, CPU)).double()
        torch.testing.assert_close(terms.reconstruction[1000 * block :][: len(images)], expected, rtol=0, atol=1e-3)
    assert len(engine.evaluate(model, many[:0], seed=0, device=CPU).kl) == 0


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


def test_models_of_threads_are_those_of_their_seeds() -> None:
    expected = [engine.new_model(2, seed).state_dict() for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        for seed, model in enumerate(pool.map(engine.new_model, [2] * 200, [0, 1] * 100)):
            for name, weight in model.state_dict().items():
                assert torch.equal(weight, expected[seed % 2][name])


def test_a_model_of_nonsense_is_an_error(digits: data.Split) -> None:
    model = engine.new_model(2, 0)
    with torch.no_grad():
        model.linear1mean.weight.fill_(3e38)
    with pytest.raises(VaeError, match="codes that are not finite"):
        engine.encode(model, digits.images, CPU)
    with pytest.raises(VaeError, match=r"pixels that are not finite.*nearer to 0"):
        engine.decode(model, torch.full((1, 2), float("nan")))


@needs_cuda
def test_cuda_sees_the_same_losses_as_the_cpu(digits: data.Split) -> None:
    model, cuda = engine.new_model(2, 0), torch.device("cuda")
    on_cpu = engine.evaluate(model, digits.images, seed=0, device=CPU)
    on_cuda = engine.evaluate(engine.prepare(model, cuda), digits.images, seed=0, device=cuda)
    torch.testing.assert_close(on_cpu.loss(), on_cuda.loss(), rtol=0, atol=0.1)
