"""What benchmarks/caption_sensitivity.py says of a model that hears a caption, and of one that does not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from projects import REPOSITORY
from tiny import make_embeddings, make_store, make_video_unet, stage_info

from pyoco_pipeline.data.crossing_digits import crossing_caption
from pyoco_pipeline.data.digits import DIRECTIONS, SPEEDS, caption
from pyoco_pipeline.models import VideoUNet, save_video_model

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import caption_sensitivity

Figures = dict[float, list[tuple[float, float]]]  # sigma -> (percent, standard error) of every change


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_changed_caption_is_one_that_the_digits_may_have(direction: str, speed: str) -> None:
    def of(way: str) -> str:
        return caption(7, "orange", way, speed)

    other = {"left": "right", "right": "left", "up": "down", "down": "up"}
    axis = {"left": "up", "right": "down", "up": "left", "down": "right"}
    assert caption_sensitivity.opposite_way(of(direction)) == of(other[direction])
    assert caption_sensitivity.other_axis(of(direction)) == of(axis[direction])


def test_of_two_digits_the_way_of_the_one_behind_is_changed_and_both_axes() -> None:
    front, behind = caption(1, "red", "left", "slowly"), caption(2, "blue", "down", "slowly")
    both = crossing_caption(front, behind)
    assert caption_sensitivity.opposite_way(both) == crossing_caption(
        front, caption(2, "blue", "up", "slowly")
    )
    assert caption_sensitivity.other_axis(both) == crossing_caption(
        caption(1, "red", "up", "slowly"), caption(2, "blue", "right", "slowly")
    )


@pytest.fixture
def measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Figures]]:
    """How many clips were used and what was found, of a model and of embeddings of `heard` of the captions."""
    store = make_store(tmp_path / "03_primary/clips", num_test=6)
    captions = [item.caption for item in store.take(store.unseen_split)]

    def measure(model: VideoUNet, heard: int = 6) -> tuple[int, Figures]:
        changes = [change(c) for change in caption_sensitivity.CHANGES.values() for c in captions[:heard]]
        make_embeddings(tmp_path / "04_feature/text_embeddings", [*captions, *changes])
        save_video_model(model, tmp_path / "06_models/base", stage_info())
        monkeypatch.setattr(
            sys, "argv", ["caption_sensitivity.py", str(tmp_path), "--sigmas", "0.5", "4", "--clips", "5"]
        )
        caption_sensitivity.main()
        first, _, *rows = capsys.readouterr().out.splitlines()
        figures: Figures = {}
        for row in rows:
            values = re.findall(r"([+-][\d.]+)% ± ([\d.]+)", row)
            figures[float(row.split()[0])] = [(float(grown), float(error)) for grown, error in values]
        return int(first.split()[0]), figures

    return measure


def test_a_model_that_hears_captions_does_not_score_0(measured: Callable[..., tuple[int, Figures]]) -> None:
    model = make_video_unet()
    for name, parameter in model.named_parameters():
        if "attn2.to_out" in name:
            torch.nn.init.normal_(parameter)
    clips, figures = measured(model)
    assert clips == 5
    assert list(figures) == [0.5, 4.0]
    for grown in figures.values():
        assert len(grown) == len(caption_sensitivity.CHANGES)
        assert all(value != 0 and error > 0 for value, error in grown)


def test_a_model_that_does_not_hear_them_scores_0(measured: Callable[..., tuple[int, Figures]]) -> None:
    model = make_video_unet()
    for name, parameter in model.named_parameters():
        if "attn2.to_out" in name:
            torch.nn.init.zeros_(parameter)
    assert measured(model)[1] == {0.5: [(0.0, 0.0)] * 2, 4.0: [(0.0, 0.0)] * 2}


def test_clips_whose_changed_captions_have_no_embedding_are_left_out(
    measured: Callable[..., tuple[int, Figures]],
) -> None:
    assert measured(make_video_unet(), heard=3)[0] == 3
