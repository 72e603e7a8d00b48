"""What `vae test` says of the numbers to expect: only where they are comparable."""

import dataclasses
from typing import Any

import pytest
from conftest import Notes

from vaecli import checkpoint, reference
from vaecli.metadata import Metadata
from vaecli.reference import TEST_LOSSES, expected
from vaecli.services.evaluate import evaluate
from vaecli.services.resume import Trained


def on_the_reference(notes: Notes) -> list[str]:
    return [text for text in notes.heard if "recipe" in text]


@pytest.fixture
def source(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Metadata:
    """The trained run's metadata, its data and its settings being the reference's for this test."""
    metadata = checkpoint.read_metadata(trained.checkpoint)
    monkeypatch.setattr(reference, "_TRAIN", metadata.data.train_sha256)
    monkeypatch.setattr(reference, "_TEST", metadata.data.test_sha256)
    monkeypatch.setattr(reference, "_RECIPE", metadata.training)
    return metadata


def test_the_reference_is_three_seeds_of_fifty_epochs() -> None:
    assert TEST_LOSSES.keys() == {2, 4}
    for runs in TEST_LOSSES.values():
        assert [len(run) for run in runs] == [50, 50, 50]
    assert all(
        four < two
        for run, other in zip(TEST_LOSSES[4], TEST_LOSSES[2], strict=True)
        for four, two in zip(run, other, strict=True)
    )


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (0.0, "is among them."),
        (0.5, "is 0.40 below them, as another seed or processor may be."),
        (-2.05, "is 1.95 above them, as another"),
        (-2.2, "is 2.10 above them, more than another"),
    ],
)
def test_a_comparable_loss_is_compared(
    trained: Trained, source: Metadata, monkeypatch: pytest.MonkeyPatch, shift: float, words: str
) -> None:
    second = trained.test_losses[1] + shift
    monkeypatch.setattr(reference, "TEST_LOSSES", {2: ((300.0, second - 0.1), (300.0, second + 0.1))})
    notes = Notes()
    evaluate(trained.checkpoint, observer=notes)
    (heard,) = on_the_reference(notes)
    assert f"2 runs of the tutorial's recipe gave {second - 0.1:.2f} to {second + 0.1:.2f}" in heard
    assert words in heard
    evaluate(trained.checkpoint, split="train", observer=notes)
    assert on_the_reference(notes) == [heard]


def test_a_run_is_among_itself(trained: Trained, source: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference has two decimals, so its own runs lie beyond it by less than it can say."""
    monkeypatch.setattr(reference, "TEST_LOSSES", {2: ((300.0, round(trained.test_losses[1], 2)),)})
    notes = Notes()
    evaluate(trained.checkpoint, observer=notes)
    assert on_the_reference(notes)[0].endswith("this loss is among them.")


def test_later_epochs_are_judged_more_strictly() -> None:
    assert [reference.margin(epoch) for epoch in (1, 9, 10, 50)] == [2.0, 2.0, 1.5, 1.5]


def test_nothing_else_is_compared(source: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TEST_LOSSES", {2: ((1.0, 2.0), (3.0, 4.0))})
    assert expected(source) == (2.0, 4.0)
    assert expected(dataclasses.replace(source, epoch=1)) == (1.0, 3.0)
    training: dict[str, Any] = {"lr": 0.1, "beta": 2.0, "batch_size": 7, "lr_schedule": "cosine", "kl_warmup": 1}
    others = [dataclasses.replace(source.training, **{name: value}) for name, value in training.items()]
    changed = [dataclasses.replace(source, training=other) for other in others]
    changed += [dataclasses.replace(source, z_dim=3), dataclasses.replace(source, epoch=3)]
    changed += [dataclasses.replace(source, epoch=0)]
    for split in ("train_sha256", "test_sha256"):
        changed += [dataclasses.replace(source, data=dataclasses.replace(source.data, **{split: "0" * 64}))]
    assert [expected(metadata) for metadata in changed] == [None] * len(changed)
