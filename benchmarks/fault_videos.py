"""What becomes of broken videos, in what time and memory: `python benchmarks/fault_videos.py`.

Exits with 1 if one is accepted that cannot be a video, or if anything but a reason for quarantine comes out.
"""

import argparse
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import mutations

from pyoco_pipeline.data.isolation import Isolated, IsolationError
from pyoco_pipeline.data.video import VideoError


def outcome(decoder: Isolated, mutant: mutations.Mutant) -> str:
    """The reason for quarantine with its numbers left out, or that there are clips."""
    try:
        decoder.call(mutations.cut, mutant.path)
    except (VideoError, IsolationError) as error:
        return re.sub(r"\d+(\.\d+)?", "N", error.reason)
    except Exception as error:  # the benchmark looks for these
        return f"!! {type(error).__name__}: {error}"
    return f"!! accepted: {mutant.path.name}" if mutant.is_hopeless else "(clips)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=500, help="how many to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random damage")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="for one file (default: %(default)s)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="of the decoder (default: %(default)s)")
    arguments = parser.parse_args()

    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with Isolated(
            timeout_s=None, memory_mb=None
        ) as maker:  # so that encoding does not count as memory here
            videos = maker.call(mutations.mutants, Path(folder) / "v", arguments.videos, arguments.seed)
        decoder_mb, before_mb, began = 0.0, mutations.peak_mb(), time.perf_counter()
        with Isolated(timeout_s=arguments.timeout_s, memory_mb=arguments.memory_mb) as decoder:
            for mutant in videos:
                start = time.perf_counter()
                times[outcome(decoder, mutant)].append(time.perf_counter() - start)
                decoder_mb = max(decoder_mb, decoder.call(mutations.peak_mb))
        total = time.perf_counter() - began

    print(f"{'files':>6}{'median ms':>11}{'longest ms':>12}  reason")
    for reason, taken in sorted(times.items(), key=lambda item: -len(item[1])):
        print(f"{len(taken):6}{1e3 * sorted(taken)[len(taken) // 2]:11.1f}{1e3 * max(taken):12.1f}  {reason}")
    clips, bad = (
        len(times["(clips)"]),
        sum(len(taken) for reason, taken in times.items() if reason[:2] == "!!"),
    )
    print(
        f"{len(videos)} files in {total:.0f} s: {clips} gave clips, {len(videos) - clips - bad} went to "
        f"quarantine, {bad} did what none should"
    )
    print(
        f"peak memory: decoder {decoder_mb:.0f} MB, this process {mutations.peak_mb():.0f} MB "
        f"({before_mb:.0f} MB before the first file)"
    )
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
