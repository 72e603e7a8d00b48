"""Threads: as many as the container allows, and what the user says goes first."""

import os
from pathlib import Path

import pytest

from vaecli.threads import stay_within_quota


@pytest.mark.parametrize(
    ("quota", "chosen"),
    [("200000 100000\n", "2"), ("150000 100000\n", "2"), ("5000 100000\n", "1"), ("6400000 100000\n", None)]
    + [(odd, None) for odd in ("max 100000\n", "", "-1 100000", "1 0", "a b c")],
)
def test_a_quota_below_the_cores_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, chosen: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)  # macOS has none
    (tmp_path / "cpu.max").write_text(quota)
    stay_within_quota(tmp_path / "cpu.max")
    assert os.environ.get("OMP_NUM_THREADS") == chosen
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    stay_within_quota(tmp_path / "cpu.max")
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_no_quota_no_opinion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stay_within_quota(tmp_path / "none")
    assert "OMP_NUM_THREADS" not in os.environ
