"""Feature extraction beside the bare network, and distances: `python benchmarks/bench_extractors.py --device cuda`.

I3D with random weights: clips a second from uint8 clips in main memory to features in main memory, through our class,
against the forward pass of the same network on a batch that lies ready on the device, in turns. Distances are of given
features. On a CPU a few clips of 16x224x224 take seconds each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyoco_pipeline.evaluation.extractor_registry import open_extractor
from pyoco_pipeline.evaluation.frechet import frechet_distance
from pyoco_pipeline.evaluation.kernel_distance import kernel_distance
from pyoco_pipeline.evaluation.published.base import PublishedExtractor
from pyoco_pipeline.evaluation.published.i3d import InceptionI3d


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def random_i3d(device: torch.device, batch: int, precision: str) -> PublishedExtractor:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        torch.save(InceptionI3d().state_dict(), Path(folder) / "i3d.pt")
        return open_extractor(
            "i3d_tats",
            Path(folder) / "i3d.pt",
            device,
            allow_other_weights=True,
            batch_size=batch,
            precision=precision,  # type: ignore[arg-type]
        )


def measure_i3d(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median clips a second of both, and the ratio of medians."""
    device, batch, batches = torch.device(arguments.device), arguments.batch, arguments.batches
    extractor = random_i3d(device, batch, arguments.precision)
    shape = (batch * batches, arguments.frames, arguments.side, arguments.side, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ready = extractor.prepare(torch.from_numpy(clips[:batch]).to(device))

    @torch.inference_mode()
    def bare() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            for _ in range(batches):
                extractor._net(ready)

    def ours() -> None:
        extractor.features(clips)

    for run in (bare, ours):
        run()
    times = [(seconds(bare, device), seconds(ours, device)) for _ in range(arguments.repeats)]
    bare_s, ours_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "clips": f"{arguments.frames}x{arguments.side}x{arguments.side}, batches of {batch}",
        "precision": arguments.precision,
        "bare_clips_per_s": len(clips) / bare_s,
        "features_clips_per_s": len(clips) / ours_s,
        "ratio": bare_s / ours_s,
    }


def measure_distances() -> dict[str, float]:
    rng = np.random.default_rng(0)
    covariances = [np.cov(rng.standard_normal((4096, 2048)), rowvar=False) for _ in range(2)]
    means = rng.standard_normal((2, 2048))
    first, second = rng.standard_normal((2, 2048, 400))
    cpu = torch.device("cpu")
    return {
        "frechet_2048d_s": seconds(
            lambda: frechet_distance(means[0], covariances[0], means[1], covariances[1]), cpu
        ),
        "kernel_2048_samples_400d_s": seconds(lambda: kernel_distance(first, second), cpu),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="clips at once (1 on CPU, else 16)")
    parser.add_argument("--batches", type=int, help="batches in a measurement (2 on CPU, else 8)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=224, help="of the stored clips; I3D itself sees 224")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.batch = arguments.batch or (1 if on_cpu else 16)
    arguments.batches = arguments.batches or (2 if on_cpu else 8)

    device = "cpu" if on_cpu else torch.cuda.get_device_name(arguments.device)
    result = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(result | measure_i3d(arguments) | measure_distances(), indent=2))


if __name__ == "__main__":
    main()
