"""Time and memory of validating a synthetic table of captions: python benchmarks/bench_captions.py --rows 100000

Each executor runs in a fresh process, so that its peak memory is its own, and that of its workers. Rules are the
project's own, from conf/base/catalog.yml; a few rows in a thousand break one each, and the previous version differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml

PROJECT = Path(__file__).parents[1]
FAULTS = [None, " ", "<b>bold</b> move", "x" * 1200, "see https://example.org/x", "a\x07bell", "красный мяч"]


def captions(rows: int, seed: int) -> pd.DataFrame:
    """Captions of 4 to 19 words drawn by Zipf's law from 20,000, four segments a video, as `list_captions` has them."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(draw.choice(letters, size=draw.integers(2, 11))) for _ in range(20_000)])
    lengths = draw.integers(4, 20, size=rows)
    drawn = words[np.minimum(draw.zipf(1.3, size=lengths.sum()) - 1, len(words) - 1)]
    texts = [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
    for row in draw.choice(rows, size=rows // 200, replace=False):
        texts[row] = FAULTS[row % len(FAULTS)]
    starts = np.arange(rows) % 4 * 2.0
    return pd.DataFrame(
        {
            "row_id": [f"{row:06d}" for row in range(rows)],
            "path": [f"videos/{row // 4:06d}.mp4" for row in range(rows)],
            "caption": pd.Series(texts, dtype=object),
            "start": starts,
            "end": starts + 2.0,
            "split": np.where(np.arange(rows) // 4 % 20 == 0, "test", "train"),
            "path_problem": "",
            "num_tokens": lengths + 2,
            "tokens_cut": np.maximum(0, lengths + 2 - 16),
        }
    )


def measure(rows: int, executor: str, workers: int, drift: bool) -> dict[str, float]:
    """Seconds and MB of one validation in this process and its children."""
    from pyoco_pipeline.data.caption_validator import CaptionValidator

    spec = yaml.safe_load((PROJECT / "conf/base/catalog.yml").read_text())["captions"]["validator"]
    with tempfile.TemporaryDirectory() as folder:
        previous = Path(folder) / "captions.parquet"
        if drift:
            captions(rows, seed=1).to_parquet(previous)
        table = captions(rows, seed=0)
        options = {"executor": executor, "workers": workers, "shard_rows": -(-rows // max(4, workers))}
        if drift:
            options["drift"] = {**spec["options"]["drift"], "filepath": str(previous)}
        validator = CaptionValidator(f"{folder}/captions.html", spec["options"]["expectations"], **options)
        peak, stop = [0.0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(peak, stop), daemon=True)
        watcher.start()
        started = time.perf_counter()
        kept = validator.validate(table)
        seconds = time.perf_counter() - started
        stop.set()
        watcher.join()
        page = Path(folder, "captions.html").stat().st_size
    return {"seconds": seconds, "peak_mb": peak[0] / 2**20, "kept": len(kept), "page_kb": page / 2**10}


def _watch(peak: list[float], stop: threading.Event) -> None:
    """Keeps the largest memory of this process and its children together, pages that they share counted once."""
    own = psutil.Process()
    while not stop.wait(0.02):
        total = 0.0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], total)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--executors", nargs="+", default=["inline", "processes"])
    parser.add_argument("--one", action="store_true", help="measure in this process and print JSON")
    parser.add_argument(
        "--no-drift", action="store_true", help="leave the comparison with a previous version out"
    )
    arguments = parser.parse_args()
    if arguments.one:
        result = measure(arguments.rows, arguments.executors[0], arguments.workers, not arguments.no_drift)
        print(json.dumps(result))
        return
    print(f"{arguments.rows:,} rows, {os.cpu_count()} cores; limits 60 s and 1,024 MB for 100,000")
    for executor in arguments.executors:
        for drift in (True, False):
            command = [
                sys.executable,
                __file__,
                "--one",
                "--rows",
                str(arguments.rows),
                "--executors",
                executor,
            ]
            command += ["--workers", str(arguments.workers), *([] if drift else ["--no-drift"])]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            print(
                f"{executor:10s} {'with' if drift else 'no':>4s} comparison: {found['seconds']:5.1f} s, peak "
                f"{found['peak_mb']:,.0f} MB, {found['kept']:,} rows kept, page of {found['page_kb']:.0f} kB"
            )


if __name__ == "__main__":
    main()
