"""Does each stage of a trained cascade of digits do its part? `python benchmarks/cascade_quality.py data/cascade`

On what `kedro run --env cascade` left in its data folder:
    agreement     of the digit that Digits3D reads in neighbouring stages' clips of one prompt
    position      of the digit in interpolated frames of held-out real clips, given their true key frames, in pixels of
                  the interpolation stage from where it is in the true clip; beside it, of frames that blend the two key
                  frames around them
    sharpness     PSNR and fid_lite0 of super-resolved held-out real clips, beside bicubic upsampling of the same
    key frames    given at all places, without noise augmentation and with it: how far the interpolation stage's clips
                  are from them (RMS of the range [-1, 1]), beside how far is what it was given, which is what the
                  augmentation alone makes of them; and how far its key frames are when given at their own places
`--only key_frames` (agreement, positions, key_frames, sharpness) measures a part, and needs only that part's stages.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyoco_pipeline.cascade.conditions import FramesCondition, condition_from_config
from pyoco_pipeline.cascade.plan import PlannedStage
from pyoco_pipeline.cascade.sampling import continue_clips, taken_shape
from pyoco_pipeline.config import GenerateSettings, LaterStageSettings, SamplerSettings
from pyoco_pipeline.data.batches import to_float, to_uint8
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.views import view_of
from pyoco_pipeline.diffusion import sample
from pyoco_pipeline.evaluation.digits3d import frames_per_step
from pyoco_pipeline.evaluation.extractors import Digits3D, Lite0
from pyoco_pipeline.evaluation.frechet import distance_of_statistics
from pyoco_pipeline.evaluation.statistics import FeatureStatistics
from pyoco_pipeline.generation import CaptionEmbedder, load_denoiser, sampling_mode
from pyoco_pipeline.models import load_stage_info
from pyoco_pipeline.noise import prior_from_config

MEASURES = ("agreement", "positions", "key_frames", "sharpness")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the data folder of the environment")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    parser.add_argument("--noise-level", type=float, default=0.05, help="of the noise augmentation")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="all")
    arguments = parser.parse_args()
    data = arguments.data
    later = LaterStageSettings(
        sampler=SamplerSettings(solver="dpmpp_2m", steps=arguments.steps),
        noise_level=arguments.noise_level,
        batch_size=8,
    )
    settings = GenerateSettings(num_clips=arguments.clips, interpolation=later, sr256=later)
    stages = {name: data / "06_models" / name for name in ("interpolation", "sr256")}
    real = ClipStore(data / "03_primary/clips")
    embeddings = TextEmbeddings(data / "04_feature/text_embeddings")
    if "agreement" in arguments.only:
        print_agreement(data / "07_model_output/stages")
    if "positions" in arguments.only:
        print_positions(stages["interpolation"], real, embeddings, settings)
    if "key_frames" in arguments.only:
        print_key_frames(stages["interpolation"], real, embeddings, settings)
    if "sharpness" in arguments.only:
        print_sharpness(stages["sr256"], real, embeddings, settings)


def print_agreement(folder: Path) -> None:
    """Of the digits read in the generated clips of neighbouring stages."""
    reader, read = Digits3D(), {}
    for name in ("base", "interpolation", "sr256"):
        store = ClipStore(folder / name)
        stride = frames_per_step(store.manifest.fps)
        read[name] = [found["digit"] for found in reader.read(store.videos()[:, ::stride])]
    for before, after in (("base", "interpolation"), ("interpolation", "sr256"), ("base", "sr256")):
        same = np.mean([a == b for a, b in zip(read[before], read[after], strict=True)])
        print(f"agreement {before} -> {after}: {same:.3f} of {len(read[before])} clips")


def print_positions(
    model: Path, real: ClipStore, embeddings: TextEmbeddings, settings: GenerateSettings
) -> None:
    """Of the digit in interpolated frames."""
    true, made = _continued(model, "interpolation", real, embeddings, settings)
    stride = _frames_condition(model).key_stride
    new = np.arange(true.shape[1]) % stride != 0
    blended = _blended(true, stride)
    for name, clips in (("interpolated", made), ("blended key frames", blended)):
        error = np.linalg.norm(_centres(clips) - _centres(true), axis=-1)[:, new]
        print(
            f"position, {name}: mean {error.mean():.3f}, 95% below {np.quantile(error, 0.95):.3f}, largest "
            f"{error.max():.3f} pixels of {true.shape[2]}, {error.size} new frames"
        )
    for name, clips in (("interpolated", made), ("blended key frames", blended)):
        difference = (clips[:, new].astype(float) - true[:, new]) / 127.5
        print(f"new frames, {name}: PSNR {_psnr(difference):.2f} dB")


def print_key_frames(
    model: Path, real: ClipStore, embeddings: TextEmbeddings, settings: GenerateSettings
) -> None:
    """Given at all places, and at their own."""
    info, condition = load_stage_info(model), _frames_condition(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    items = real.take("test", 8)
    view = view_of(real, info.shape)
    stored = torch.from_numpy(np.stack([item.clip.video for item in items]))
    x0 = view.shrink(to_float(view.cut(stored))).to(device)
    cond = {
        key: value.to(device)
        for key, value in CaptionEmbedder(embeddings)([item.caption for item in items]).items()
    }
    denoise, prior = load_denoiser(model, device), prior_from_config(info.noise)
    steps = settings.interpolation.sampler.steps

    def errors(is_given: Tensor, level: float) -> str:
        draw = torch.Generator(device).manual_seed(0)
        noise = condition.prior.sample(x0.shape, generator=draw, device=device)
        levels = torch.full((len(x0),), level, device=device)
        given = condition.given(x0, is_given.expand(len(x0), -1), levels, noise)
        options = {"solver": "dpmpp_2m", "steps": steps, "generator": draw, "device": device}
        with sampling_mode(settings, device):
            made = sample(denoise, prior, x0.shape, **options, **cond, **given).clamp(-1, 1)
        made_error, given_error = (
            _rms((clip - x0)[:, :, is_given]) for clip in (made, given["concat"][:, : x0.shape[1]])
        )
        return f"RMS error {made_error:.4f}, of what was given {given_error:.4f}"

    keys = condition.key_frames(x0.shape[2]).to(device)
    for level in (0.0, settings.interpolation.noise_level):
        for places, is_given in (("all places", torch.ones_like(keys)), ("their own places", keys)):
            print(f"key frames at {places}, noise augmentation {level:g}: {errors(is_given, level)}")


def print_sharpness(
    model: Path, real: ClipStore, embeddings: TextEmbeddings, settings: GenerateSettings
) -> None:
    """Beside bicubic upsampling."""
    true, made = _continued(model, "sr256", real, embeddings, settings)
    small = _taken(model, real, settings.num_clips)
    bicubic = _bicubic(torch.from_numpy(small), true.shape[2:4])
    reader = Lite0()
    reference = _features(reader, true)
    for name, clips in (("super-resolved", made), ("bicubic", bicubic)):
        fid = distance_of_statistics(_features(reader, clips), reference)
        print(
            f"sharpness, {name}: PSNR {_psnr((clips.astype(float) - true) / 127.5):.2f} dB, fid_lite0 {fid:.2f}"
        )


def _continued(
    model: Path, name: str, real: ClipStore, embeddings: TextEmbeddings, settings: GenerateSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out real clips as the stage should make them, and as it makes them: (N, T, H, W, 3) uint8."""
    info = load_stage_info(model)
    items = real.take("test", settings.num_clips)
    view = view_of(real, info.shape)
    stored = torch.from_numpy(np.stack([item.clip.video for item in items]))
    true = to_uint8(view.shrink(to_float(view.cut(stored)))).numpy()
    taken = _taken(model, real, settings.num_clips)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given"
        write_clips(given, _replaced(items, taken), kind=real.manifest.kind, shape=taken.shape[1:4], fps=1.0)
        plan = PlannedStage(name, *info.shape, info.fps, "", info.shape[0])
        made = [
            item.clip.video for item in continue_clips(plan, model, ClipStore(given), settings, embeddings)
        ]
    return true, np.stack(made)


def _taken(model: Path, real: ClipStore, num: int) -> np.ndarray:
    """What the stage takes of held-out real clips."""
    view = view_of(real, taken_shape(model))
    stored = torch.from_numpy(np.stack([item.clip.video for item in real.take("test", num)]))
    return to_uint8(view.shrink(to_float(view.cut(stored)))).numpy()


def _replaced(items: list[CaptionedClip], videos: np.ndarray) -> Iterator[CaptionedClip]:
    for item, video in zip(items, videos, strict=True):
        yield replace(item, clip=replace(item.clip, video=video, fps=None))


def _frames_condition(model: Path) -> FramesCondition:
    condition = condition_from_config(load_stage_info(model).condition)
    assert isinstance(condition, FramesCondition)
    return condition


def _blended(true: np.ndarray, stride: int) -> np.ndarray:
    """Every frame as the mean of the two key frames around it, weighted by their nearness."""
    place = np.arange(true.shape[1])
    before = place // stride * stride
    after = np.minimum(before + stride, true.shape[1] - 1)
    share = ((place - before) / stride)[:, None, None, None]
    return ((1 - share) * true[:, before] + share * true[:, after]).round().astype(np.uint8)


def _centres(clips: np.ndarray) -> np.ndarray:
    """(N, T, 2): where the ink of each frame lies, its centre of mass above the background."""
    ink = clips.astype(float).max(axis=-1)
    ink = np.maximum(ink - np.median(ink, axis=(2, 3), keepdims=True) - 24, 0)
    total = np.maximum(ink.sum(axis=(2, 3)), 1e-9)
    y, x = np.arange(clips.shape[2]), np.arange(clips.shape[3])
    return np.stack([(ink.sum(axis=3) @ y) / total, (ink.sum(axis=2) @ x) / total], axis=-1)


def _bicubic(small: Tensor, size: tuple[int, int]) -> np.ndarray:
    frames = to_float(small).transpose(1, 2).flatten(0, 1)
    large = F.interpolate(frames, size, mode="bicubic", align_corners=False)
    return to_uint8(large.unflatten(0, small.shape[:2]).transpose(1, 2)).numpy()


def _features(reader: Lite0, clips: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics(reader.dim)
    return statistics.update(reader.features(clips))


def _rms(difference: Tensor) -> float:
    return difference.float().square().mean().sqrt().item()


def _psnr(difference: np.ndarray) -> float:
    """In dB, of differences in the range [-1, 1]."""
    return float(10 * np.log10(4 / np.square(difference).mean()))


if __name__ == "__main__":
    main()
