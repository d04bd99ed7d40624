"""What the default run's metrics are without its training: a random network, and the inflated image model as it is.

    kedro run && python benchmarks/baselines.py

Reads the clips, embeddings and models of the default run and samples with its own settings and seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import OmegaConf

from pyoco_pipeline.config import GenerateSettings, InflateSettings
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, Clip, ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.evaluation.evaluate import evaluate_clips
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.evaluation.settings import EvaluateSettings
from pyoco_pipeline.generation import generate_clips
from pyoco_pipeline.models import (
    inflate,
    load_image_model,
    load_stage_info,
    load_video_model,
    save_video_model,
)
from pyoco_pipeline.models.inflation import ImageUNet, VideoUNet

COLUMNS = ("fvd_digits3d", "fvd_digits3d_floor", "caption_accuracy_digit", "caption_accuracy_direction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="data folder of a finished default run"
    )
    parser.add_argument("--conf", type=Path, default=Path("conf/base"))
    arguments = parser.parse_args()
    data, conf = arguments.data, arguments.conf
    store = ClipStore(data / "03_primary/clips")
    embeddings = TextEmbeddings(data / "04_feature/text_embeddings")
    generate = GenerateSettings(**OmegaConf.load(conf / "parameters_generate.yml")["generate"])
    options = InflateSettings(**OmegaConf.load(conf / "parameters_inflate.yml")["inflate"]).options()
    trained = data / "06_models/base"
    image = load_image_model(data / "06_models/image")

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {generate.num_clips} clips")
    print(f"{'model':34s}" + "".join(f"{name:>28s}" for name in COLUMNS))
    models = {
        "random network": lambda: inflate(_random_like(image), **options),
        "image model, inflated, not tuned": lambda: inflate(image, **options),
        "fine-tuned": lambda: load_video_model(trained),
    }
    for name, build in models.items():
        values = _measure(build(), trained, store, embeddings, generate)
        print(f"{name:34s}" + "".join(f"{values[column]:28.3f}" for column in COLUMNS), flush=True)


def _random_like(image: ImageUNet) -> ImageUNet:
    torch.manual_seed(0)
    return type(image).from_config(image.config)


def _measure(
    model: VideoUNet, trained: Path, store: ClipStore, embeddings: TextEmbeddings, generate: GenerateSettings
) -> dict[str, float]:
    items = store.take("test", generate.num_clips)
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "model"
        save_video_model(model, stage, load_stage_info(trained))
        videos = generate_clips(stage, generate, [item.caption for item in items], embeddings, store.shape)

        def sampled() -> Iterator[CaptionedClip]:
            for item, video in zip(items, videos, strict=True):
                clip = Clip(item.clip.clip_id, video.numpy(), item.clip.attributes)
                yield CaptionedClip(clip, item.caption, "generated")

        clips = Path(folder) / "clips"
        write_clips(clips, sampled(), kind=store.manifest.kind, shape=store.shape, fps=store.manifest.fps)
        metrics = ("fvd_digits3d", "caption_accuracy")
        return flatten_metrics(evaluate_clips(ClipStore(clips), store, EvaluateSettings(metrics=metrics)))


if __name__ == "__main__":
    main()
