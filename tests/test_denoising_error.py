"""What benchmarks/denoising_error.py says of a stage and the image model that it was inflated from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from projects import REPOSITORY
from tiny import make_embeddings, make_store, make_unet, make_video_unet, stage_info

from pyoco_pipeline.models import VideoUNet, inflate, save_image_model, save_video_model
from pyoco_pipeline.noise import IIDNoise

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import denoising_error


def measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: VideoUNet
) -> list[list[float]]:
    """Rows of sigma, the stage's error, the image model's, and their ratio."""
    store = make_store(folder / "03_primary/clips", num_test=6)
    make_embeddings(folder / "04_feature/text_embeddings", [item.caption for item in store.take()])
    save_video_model(stage, folder / "06_models/base", stage_info())
    save_image_model(make_unet(), folder / "06_models/image", stage_info(stage="image"))
    monkeypatch.setattr(
        sys, "argv", ["denoising_error.py", str(folder), "--sigmas", "0.1", "2", "--clips", "5"]
    )
    denoising_error.main()
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "5 clips of (3, 4, 8, 8)"
    return [[float(cell) for cell in row.split()] for row in rows]


def test_a_stage_that_is_its_image_model_errs_as_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured(tmp_path, monkeypatch, capsys, inflate(make_unet()))

    assert [row[0] for row in rows] == [0.1, 2.0]
    for _, stage, image, ratio in rows:
        assert stage == image > 0
        assert ratio == 1


def test_one_that_was_trained_since_errs_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _, stage, image, ratio in measured(tmp_path, monkeypatch, capsys, make_video_unet(seed=3)):
        assert stage != image
        assert ratio == pytest.approx(stage / image, abs=0.02)


def test_the_error_of_clips_that_are_returned_as_they_came_is_the_noise() -> None:
    clips, sigma = torch.zeros(40, 3, 4, 8, 8), 0.5

    class Identity:
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x

    found = denoising_error.rms_error(Identity(), clips, {}, IIDNoise(), sigma)

    assert found == pytest.approx(sigma, rel=0.02)  # of 30,720 draws, five standard errors
