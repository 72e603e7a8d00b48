"""Learning rate and KL weight over the epochs, against torch's own schedulers and plain arithmetic."""

import pytest
import torch

from vaecli.schedule import Schedule


def test_the_recipe_is_constant() -> None:
    recipe = Schedule(0.001)
    for epochs in (0, 0.5, 49.99, 1000):
        assert (recipe.lr_after(epochs), recipe.kl_weight_after(epochs)) == (0.001, 1.0)


def test_cosine_is_that_of_torch() -> None:
    epochs, steps = 3, 7
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.003)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
    ours = Schedule(0.003, cosine_epochs=epochs)
    for step in range(epochs * steps):
        assert ours.lr_after(step / steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert ours.lr_after(epochs) == pytest.approx(0, abs=1e-12)


def test_warm_up_is_a_straight_line_to_beta() -> None:
    warm = Schedule(0.001, beta=4.0, kl_warmup=10)
    assert [warm.kl_weight_after(epochs) for epochs in (0, 2.5, 5, 10, 30)] == [0, 1, 2, 4, 4]
    assert warm.lr_after(5) == 0.001
