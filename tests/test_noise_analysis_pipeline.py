"""The noise analysis from clips to page and snippet, its measures on known laws, and what a user can get wrong."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from test_inversion import gaussian_denoiser
from tiny import make_store, make_unet
from torch import Tensor

from pyoco_pipeline.analysis.analyse import analyse, sample_maps
from pyoco_pipeline.analysis.correlation import frame_products
from pyoco_pipeline.analysis.embedding import clustering
from pyoco_pipeline.analysis.fit import fit_alpha
from pyoco_pipeline.analysis.gaussianity import gaussianity
from pyoco_pipeline.analysis.maps import NoiseMaps, choose_clips, invert_clips
from pyoco_pipeline.analysis.page import render_page
from pyoco_pipeline.analysis.settings import AnalyseNoiseSettings
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.datasets import FolderDataset
from pyoco_pipeline.diffusion.inversion import invert
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models import save_image_model
from pyoco_pipeline.models.parametrisation import read_parametrisation
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.noise import IIDNoise, MixedNoise, ProgressiveNoise, make_prior
from pyoco_pipeline.pipelines.analyse_noise import create_pipeline

QUICK = AnalyseNoiseSettings(num_clips=8, steps=4, resamples=100, plotted_clips=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_model")
    save_image_model(make_unet(), folder)
    (folder / "scheduler").mkdir()
    config = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    return folder


def noise_maps(maps: Tensor) -> NoiseMaps:
    ids = tuple(f"clip-{i}" for i in range(len(maps)))
    return NoiseMaps(maps.float(), ids, "none", 4, 0.002, 80.0, 0.01, 0.02)


def test_the_pipeline_goes_from_clips_to_maps_numbers_figures_page_and_snippet(
    tmp_path: Path, model: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings
) -> None:
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents/none.json").write_text("{}")
    given: dict[str, Any] = {
        "params:analyse_noise": QUICK,
        "image_model": model,
        "clips": digits_store.folder,
        "latents": tmp_path / "latents",
        "text_embeddings": digits_embeddings.folder,
    }
    folders = {n: FolderDataset(filepath=str(tmp_path / n)) for n in ("noise_maps", "noise_figures")}
    catalog = DataCatalog({n: MemoryDataset(v) for n, v in given.items()} | folders)
    outputs = SequentialRunner().run(create_pipeline(), catalog)
    numbers = outputs["noise_analysis"].load()["noise"]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["inversion"]["clips"] == 8
    assert numbers["inversion"]["sigma_max"] == read_parametrisation(model).sigma_limits[1]
    assert numbers["best"] in outputs["noise_snippet"].load()
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "noise_figures").iterdir()}
    assert set(pictures) == {
        f"{n}.png" for n in ("alpha", "correlation", "families", "pca", "tsne", "values")
    }
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    page = outputs["noise_report"].load()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") == 2 * len(pictures)  # light and dark
    maps = NoiseMaps.load(tmp_path / "noise_maps")
    assert maps.maps.shape == (8, 4, 3, 8, 8)
    assert maps.maps.isfinite().all()
    assert 0 < maps.round_trip_error <= maps.round_trip_worst


@pytest.mark.parametrize("prior", [MixedNoise(0.8), ProgressiveNoise(1.5)], ids=repr)
def test_alpha_of_frames_of_a_linear_model_is_found_through_their_inversion(prior: Any) -> None:
    """Frames N(0, 1/4) that are correlated as the prior's; the flow of each is a factor. 99.99% intervals."""
    draw = torch.Generator().manual_seed(0)
    x0 = 0.5 * prior.sample((32, 1, 5, 8, 8), generator=draw, dtype=torch.float64)
    maps = (invert(gaussian_denoiser, x0, steps=40) / 80).transpose(1, 2)
    found = analyse(noise_maps(maps), AnalyseNoiseSettings(confidence=0.9999, resamples=20000))
    low, high = found.fits[prior.name].interval
    assert low <= prior.alpha <= high
    assert high - low < 0.4
    assert found.best in (prior.name, "empirical")
    assert found.fits[prior.name].scale == pytest.approx(1.0, abs=0.1)
    noise = yaml.safe_load(found.snippet())["finetune_video"]["base"]["noise"]
    kind = noise.pop("kind")
    pasted, fitted = make_prior(kind, **noise).covariance(5), found.prior(kind).covariance(5)
    torch.testing.assert_close(pasted, fitted, rtol=0, atol=1e-4)


def test_maps_of_standard_normal_values_pass_the_checks_and_others_do_not() -> None:
    """Five standard errors, and a statistic that N(0, 1) exceeds twice over with probability below 1e-6."""
    shape = (40, 4, 2, 8, 8)
    found = gaussianity(sample_maps(MixedNoise(2.0), shape, 0))
    for name, expected in (("mean", 0), ("variance", 1), ("skewness", 0), ("kurtosis", 0)):
        moment = getattr(found, name)
        assert abs(moment.value - expected) < 5 * moment.standard_error, name
    assert found.ks < 2 * found.ks_critical
    heavy = gaussianity(np.random.default_rng(0).standard_t(4, size=shape))
    assert heavy.kurtosis.value > 0.5
    assert heavy.ks > 2 * heavy.ks_critical


def test_values_that_repeat_count_once_in_the_effective_sample_size() -> None:
    """Frames that are all the same are worth one: known to about 20% from 100 clips."""
    shape = (100, 8, 1, 8, 8)
    alone, repeated = (
        gaussianity(sample_maps(p, shape, 3)).effective_samples for p in (IIDNoise(), MixedNoise(math.inf))
    )
    assert repeated == pytest.approx(100 * 64, rel=0.3)
    assert alone > 0.7 * 100 * 8 * 64


@pytest.mark.parametrize(
    ("prior", "ratio"), [(IIDNoise(), 1.0), (MixedNoise(1.0), 0.5), (MixedNoise(3.0), 0.1)]
)
def test_frames_of_a_clip_are_nearer_by_the_share_that_they_do_not_have_in_common(
    prior: Any, ratio: float
) -> None:
    found = clustering(frame_products(sample_maps(prior, (30, 6, 3, 8, 8), 1)))
    assert abs(found.distance_ratio - ratio) < 5 * found.standard_error
    assert found.standard_error < 0.02
    if ratio == 1.0:
        assert found.same_clip < 5 * found.chance
    else:
        assert found.same_clip > 0.9


def test_clips_are_spread_over_the_split(tmp_path: Path) -> None:
    store = make_store(tmp_path / "clips", 30, 9)
    chosen = [item.clip.clip_id for item in choose_clips(store, "train", 10)]
    ids = [item.clip.clip_id for item in store.clips("train")]
    places = [ids.index(clip) for clip in chosen]
    assert len(places) == 10
    assert (places[0], places[-1]) == (0, 29)
    assert {b - a for a, b in pairwise(places)} <= {3, 4}
    assert len(choose_clips(store, "test", 64)) == 9


def test_too_few_clips_and_clips_of_one_frame_are_refused_before_anything_is_inverted(
    tmp_path: Path, model: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings
) -> None:
    few = QUICK.model_copy(update={"split": "test"})
    with pytest.raises(UserError, match="holds 4 clips of 8x8 in split 'test': at least 8"):
        invert_clips(few, model, digits_store, digits_embeddings)
    stills = make_store(tmp_path / "stills", 12, 4, frames=1)
    with pytest.raises(UserError, match="holds clips of one frame"):
        invert_clips(QUICK, model, stills, digits_embeddings)


def test_a_model_of_other_text_or_noise_levels_is_refused(
    tmp_path: Path, model: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings
) -> None:
    with pytest.raises(UserError, match="expects text tokens of width 384"):
        invert_clips(QUICK, SHIPPED, digits_store, digits_embeddings)
    high = QUICK.model_copy(update={"sigma_max": 1e4})
    with pytest.raises(UserError, match="analyse_noise does not fit the image model: sigma_max is 10000"):
        invert_clips(high, model, digits_store, digits_embeddings)


def test_maps_that_are_not_finite_and_a_folder_without_maps_are_named(tmp_path: Path) -> None:
    maps = torch.from_numpy(sample_maps(IIDNoise(), (8, 3, 1, 4, 4), 0))
    maps[2, 1] = math.nan
    with pytest.raises(UserError, match="first clip 2, hold values that are not finite"):
        analyse(noise_maps(maps), QUICK)
    with pytest.raises(UserError, match="holds no noise maps: run `analyse_noise`"):
        NoiseMaps.load(tmp_path)


def test_without_text_no_caption_reaches_the_model(
    model: Path, digits_store: ClipStore, digits_embeddings: TextEmbeddings
) -> None:
    told = invert_clips(QUICK, model, digits_store, digits_embeddings)
    again = invert_clips(QUICK, model, digits_store, digits_embeddings)
    silent = invert_clips(QUICK.model_copy(update={"text": "none"}), model, digits_store, digits_embeddings)
    assert torch.equal(told.maps, again.maps)
    assert not torch.allclose(told.maps, silent.maps, atol=1e-4)


def test_the_page_says_so_when_the_best_family_is_not_clearly_ahead() -> None:
    maps = torch.from_numpy(sample_maps(IIDNoise(), (8, 3, 1, 4, 4), 0))
    found = analyse(noise_maps(maps), QUICK)
    assert found.lead() < 2
    assert "too little to tell the two apart" in render_page(found)


def test_a_fit_does_not_depend_on_the_scale_of_the_maps() -> None:
    maps = sample_maps(ProgressiveNoise(1.0), (12, 4, 1, 8, 8), 0)
    one, other = (
        fit_alpha("progressive", frame_products(m), values_per_map=64, resamples=100)
        for m in (maps, 0.5 * maps)
    )
    assert one.alpha == pytest.approx(other.alpha, rel=1e-6)
    assert other.scale == pytest.approx(one.scale / 4, rel=1e-6)
