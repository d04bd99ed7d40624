"""Memory and step time of a long training: `python benchmarks/long_run.py [--device cuda] [--steps 5000]`.

Trains a small video model with the project's trainer, checkpoints and validation pictures. The first tenth of the steps
is warm-up; then the medians of the next tenth and of the last are compared. Ends with status 1 when memory grew or
steps became slower by more than the tolerances. The time of a step is the clock's with a GPU, and the processor's
without, so that it does not hang on who else works there.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from diffusers import UNet2DConditionModel

from pyoco_pipeline.data.batches import BatchOptions, ClipBatches
from pyoco_pipeline.data.clip_writing import write_clips
from pyoco_pipeline.data.clips import CaptionedClip, ClipStore
from pyoco_pipeline.data.digits import MovingDigitsSource
from pyoco_pipeline.data.embeddings import TextEmbeddings, write_embeddings
from pyoco_pipeline.models import inflate
from pyoco_pipeline.noise import ProgressiveNoise
from pyoco_pipeline.pipelines.samples import SampleSheet
from pyoco_pipeline.training.objective import Objective
from pyoco_pipeline.training.settings import SigmaSettings, TrainSettings
from pyoco_pipeline.training.trainer import train

FRAMES, SIZE, TOKENS, TEXT_DIM = 2, 8, 4, 8
MEMORY_TOLERANCE = 0.02  # of the host's and of the GPU's
TIME_TOLERANCE = 0.03
MB = 2**20


@dataclass(frozen=True)
class Row:
    """What was seen when steps were logged; times are per step since the row before."""

    step: int
    ms: float  # without pictures
    cpu_ms: float  # of all threads, with pictures: what others on the machine take is not in it
    resident: float  # MiB, of this process
    allocated: float = 0.0  # MiB, on the GPU
    reserved: float = 0.0


class Watch(logging.Handler):
    """Looks at the process whenever the trainer logs metrics."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.rows, self.process = batch_size, list[Row](), psutil.Process()
        self.step, self.cpu_s = 0, time.process_time()

    def emit(self, record: logging.LogRecord) -> None:
        metrics = getattr(record, "metrics", None)
        if metrics is None:
            return
        gpu = (
            (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if torch.cuda.is_available() else ()
        )
        ms = 1000 * self.batch_size / metrics["clips_per_second"]
        seen = (self.process.memory_info().rss, *gpu)
        step, cpu_s = record.step, time.process_time()  # type: ignore[attr-defined]
        cpu_ms = 1000 * (cpu_s - self.cpu_s) / (step - self.step)
        self.rows.append(Row(step, ms, cpu_ms, *(value / MB for value in seen)))
        self.step, self.cpu_s = step, cpu_s


def findings(rows: Sequence[Row], time_of_step: str) -> list[str]:
    """What grew by more than the tolerances, from the second tenth of the rows to the last.

    time_of_step: "ms", or "cpu_ms" on a machine that others work on.
    """
    tenth = len(rows) // 10
    if tenth == 0:
        raise ValueError(f"{len(rows)} rows are too few for tenths")
    first, last = rows[tenth : 2 * tenth], rows[-tenth:]
    found = []
    for name, tolerance in [
        ("resident", MEMORY_TOLERANCE),
        ("allocated", MEMORY_TOLERANCE),
        ("reserved", MEMORY_TOLERANCE),
        (time_of_step, TIME_TOLERANCE),
    ]:
        before, after = (statistics.median(getattr(row, name) for row in part) for part in (first, last))
        if before == after == 0:
            continue
        change = after / before - 1 if before else float("inf")
        line = f"{name}: {before:.2f} -> {after:.2f} ({change:+.2%}, at most {tolerance:+.0%})"
        print(line)
        if change > tolerance:
            found.append(line)
    return found


def make_store(
    folder: Path,
    *,
    num_clips: int = 256,
    frames: int = FRAMES,
    size: int = SIZE,
    text: tuple[int, int] = (TOKENS, TEXT_DIM),
) -> tuple[ClipStore, TextEmbeddings]:
    """Moving digits, and an embedding of shape `text` (L, D) for each caption."""
    source = MovingDigitsSource(
        num_train=num_clips, num_test=8, num_frames=frames, height=size, width=size, fps=8.0, seed=0
    )
    rows = source.captions().to_dict("records")
    clips = (
        CaptionedClip(clip, row["caption"], row["split"])
        for row, made in zip(rows, source.read(rows), strict=True)
        for clip in made
    )
    write_clips(folder / "clips", clips, kind=source.kind, shape=(frames, size, size), fps=source.fps)
    captions = list(dict.fromkeys(["", *(row["caption"] for row in rows)]))
    embedded = torch.randn(len(captions), *text)
    mask = torch.ones(embedded.shape[:2], dtype=torch.bool)
    write_embeddings(folder / "text", captions, embedded, mask, encoder="none", encoder_sha256="0" * 64)
    return ClipStore(folder / "clips"), TextEmbeddings(folder / "text")


def make_network(width: int) -> torch.nn.Module:
    image = UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(width, 2 * width),
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return inflate(image)


def run(
    folder: Path, steps: int, sample_every: int, batch_size: int, cuda_graphs: bool = False, width: int = 8
) -> list[Row]:
    """Train, with a checkpoint and a validation picture every so many steps; the rows of ten steps each."""
    store, embeddings = make_store(folder)
    settings = TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=1e-3, warmup_steps=steps // 10, ema_half_life=100,
        image_share=0.3, sample_every=sample_every, checkpoint_every=sample_every, num_processes=1,
        cuda_graphs=cuda_graphs,
    )  # fmt: skip
    prior = ProgressiveNoise(2.0)
    options = BatchOptions(batch_size, settings.image_share, settings.caption_dropout, settings.seed)
    watch, log = Watch(batch_size), logging.getLogger("pyoco_pipeline.metrics")
    log.addHandler(watch)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        train(
            make_network(width),
            ClipBatches(store, embeddings, options),
            Objective(prior, SigmaSettings()),
            settings,
            stage="base",
            checkpoints=folder / "checkpoints",
            identity={},
            validate=SampleSheet(folder / "samples", store, embeddings, prior, FRAMES),
        )
    finally:
        log.removeHandler(watch)
        log.setLevel(level)
    return watch.rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--sample-every", type=int, default=250, help="steps between validation pictures")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--width", type=int, default=8, help="channels of the first level, a multiple of 4")
    parser.add_argument("--cuda-graphs", action="store_true", help="as with train.cuda_graphs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    if given.steps < 10 * given.sample_every:
        parser.error("--steps: at least ten times --sample-every, so that warm-up holds a picture")
    if given.width < 4 or given.width % 4:
        parser.error(f"--width {given.width} is no multiple of 4")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees none here")
    if given.device == "cpu" and torch.cuda.is_available():
        parser.error("--device cpu: hide the GPU with CUDA_VISIBLE_DEVICES= , since training takes it")
    with tempfile.TemporaryDirectory() as folder:
        rows = run(
            Path(folder),
            given.steps,
            given.sample_every,
            given.batch_size,
            cuda_graphs=given.cuda_graphs,
            width=given.width,
        )
    name = (
        torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"{name}, torch {torch.__version__}, {given.steps} steps of {given.batch_size} clips, width {given.width}"
    )
    print("step   ms/step  CPU ms/step (medians)  resident MiB  allocated MiB  reserved MiB")
    tenth = len(rows) // 10
    for part in (rows[i : i + tenth] for i in range(0, 10 * tenth, tenth)):
        ms, cpu_ms = (statistics.median(getattr(row, name) for row in part) for name in ("ms", "cpu_ms"))
        end = part[-1]
        memory = f"{end.resident:13.1f} {end.allocated:14.1f} {end.reserved:13.1f}"
        print(f"{end.step:5} {ms:8.2f} {cpu_ms:12.2f} {memory:>52}")
    found = findings(rows, "ms" if given.device == "cuda" else "cpu_ms")
    print("flat" if not found else "NOT flat: " + "; ".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
