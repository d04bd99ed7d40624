"""From captioned rows to clips: the same whoever cuts them and however often they are stopped."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from video_files import grey, indices, write_video

from pyoco_pipeline.data import tasks as tasks_module
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.cutting import CutOptions
from pyoco_pipeline.data.digits import MovingDigitsSource
from pyoco_pipeline.data.filters import FilterOptions
from pyoco_pipeline.data.ingest import IngestOptions, ingest_clips, plan_tasks, write_ingested
from pyoco_pipeline.data.sources import open_source
from pyoco_pipeline.data.tasks import TaskOptions
from pyoco_pipeline.datasets import FolderDataset
from pyoco_pipeline.errors import UserError

CUT = CutOptions(num_frames=4, sizes=((16, 16),), fps=8)


def options(**changes) -> IngestOptions:
    task = {name: changes.pop(name) for name in ("filters", "compression", "cut") if name in changes}
    defaults = {"executor": "inline", "segments_per_task": 3}
    return IngestOptions(TaskOptions(**({"cut": CUT} | task)), **(defaults | changes))


def digits(num_train=10, num_test=3) -> MovingDigitsSource:
    return MovingDigitsSource(
        num_train=num_train, num_test=num_test, num_frames=4, height=16, width=16, fps=8.0, seed=0
    )


def videos(root: Path, rows: list[tuple]) -> object:
    """A folder of videos of ten frames with a captions table of (path, caption, split)."""
    root.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=["path", "caption", "split"])
    table.to_csv(root / "captions.csv", index=False)
    for k, path in enumerate(dict.fromkeys(table["path"])):
        if not (root / path).exists():
            write_video(
                root / path, 10, picture=lambda i, h, w, k=k: np.full((h, w, 3), grey(i) + k, np.uint8)
            )
    return open_source("video_folder", root=str(root), captions_file="captions.csv")


def ingest(folder: Path, source, how: IngestOptions | None = None, sources=None):
    captions = pd.concat(
        [s.captions().assign(source=i) for i, s in enumerate(sources or [source])], ignore_index=True
    )
    return ingest_clips(folder / "clips", folder / "work", sources or [source], captions, how or options())


def save(folder: Path, source, how: IngestOptions) -> None:
    """Ingest as the pipeline does it: into a folder that is whole or not there."""
    captions = source.captions().assign(source=0)
    writer = partial(write_ingested, work=folder / "work", sources=[source], captions=captions, options=how)
    FolderDataset(filepath=str(folder / "clips")).save(writer)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "clips").iterdir()}


def test_drawn_clips_come_in_the_order_of_their_rows(tmp_path):
    manifest = ingest(tmp_path, digits())
    store = ClipStore(tmp_path / "clips")

    assert (manifest.counts, manifest.kind, store.shape) == (
        {"test": 3, "train": 10},
        "moving_digits",
        (4, 16, 16),
    )
    assert [item.clip.clip_id for item in store.clips("train")] == [f"train-{i:06d}" for i in range(10)]


def test_what_was_done_is_kept_until_the_clips_are_in_place(tmp_path):
    save(tmp_path, digits(), options())

    assert ClipStore(tmp_path / "clips").manifest.counts == {"test": 3, "train": 10}
    assert not list((tmp_path / "work").iterdir())


def test_how_many_rows_a_task_has_changes_neither_the_order_nor_the_digest(tmp_path):
    digests = {
        ingest(tmp_path / str(size), digits(), options(segments_per_task=size)).sha256 for size in (1, 3, 100)
    }

    assert len(digests) == 1


def test_a_video_becomes_its_clips(tmp_path):
    source = videos(tmp_path / "raw", [("a.mp4", "one", "train"), ("b.mp4", "two", "test")])
    manifest = ingest(tmp_path, source)
    items = ClipStore(tmp_path / "clips").take("train")

    assert manifest.counts == {"test": 2, "train": 2}
    assert [indices(item.clip.video) for item in items] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert {item.caption for item in items} == {"one"}
    assert all(item.clip.scores.keys() >= {"motion", "brightness", "letterbox"} for item in items)
    assert all(isinstance(item.clip.phash, int) for item in items)


def test_rows_of_one_segment_become_one_clip_of_several_captions(tmp_path):
    source = videos(
        tmp_path / "raw", [("a.mp4", "one", "train"), ("b.mp4", "two", "train"), ("a.mp4", "three", "train")]
    )
    ingest(tmp_path, source)
    captions = {
        (item.clip.attributes["path"], item.caption, item.other_captions)
        for item in ClipStore(tmp_path / "clips").take()
    }

    assert captions == {("a.mp4", "one", ("three",)), ("b.mp4", "two", ())}


def test_a_file_that_can_not_be_used_is_in_quarantine_and_the_others_are_not_lost(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/torn.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and no more")
    rows = [(f"{i}.mp4", f"caption {i}", "train") for i in range(4)] + [("torn.mp4", "torn", "train")]
    ingest(tmp_path, videos(tmp_path / "raw", rows))
    with (tmp_path / "clips/quarantine.csv").open() as file:
        [row] = csv.DictReader(file)
    report = json.loads((tmp_path / "clips/report.json").read_text())
    page = (tmp_path / "clips/report.html").read_text()

    assert row["path"] == "torn.mp4"
    assert "cut short" in row["reason"]
    assert (report["segments"], report["clips"], sum(report["quarantine"].values())) == (5, {"train": 8}, 1)
    assert "torn.mp4" in page
    assert "caption 3" in page


def test_more_bad_files_than_their_share_end_the_ingest(tmp_path):
    (tmp_path / "raw").mkdir()
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / "raw" / name).write_text("no video")
    source = videos(
        tmp_path / "raw", [("x.mp4", "x", "train"), ("y.mp4", "y", "train"), ("a.mp4", "a", "train")]
    )

    with pytest.raises(
        UserError, match=r"2 of 3 segments could not be used, more than the share 0\.2 .*-x\.mp4"
    ):
        ingest(tmp_path, source)
    assert not (tmp_path / "clips").exists()


def test_nothing_but_bad_files_end_the_ingest_whatever_the_share(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.mp4").write_text("no video")
    source = videos(tmp_path / "raw", [("x.mp4", "x", "train")])

    with pytest.raises(UserError, match="1 of 1 segments could not be used, and no clip is left"):
        ingest(tmp_path, source, options(max_bad_share=1.0))


def test_filters_leave_clips_out_and_say_why(tmp_path):
    source = videos(tmp_path / "raw", [("moving.mp4", "a", "train"), ("still.mp4", "b", "train")])
    write_video(tmp_path / "raw/still.mp4", 10, picture=lambda i, h, w: np.full((h, w, 3), 90, np.uint8))
    ingest(tmp_path, source, options(filters=FilterOptions(min_motion=0.005)))
    with (tmp_path / "clips/left_out.csv").open() as file:
        rows = list(csv.DictReader(file))

    assert {row["path"] for row in rows} == {"still.mp4"}
    assert len(rows) == 2
    assert all("motion" in row["reason"] for row in rows)
    assert {item.clip.attributes["path"] for item in ClipStore(tmp_path / "clips").take()} == {"moving.mp4"}


def test_of_a_near_duplicate_in_both_splits_the_test_clip_stays(tmp_path):
    def texture(i, height, width):
        return (
            np.random.default_rng(i)
            .integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            .repeat(8, 0)
            .repeat(8, 1)
        )

    (tmp_path / "raw").mkdir()
    for name, first in (("a.mp4", 0), ("copy.mp4", 0), ("other.mp4", 50)):
        write_video(tmp_path / "raw" / name, 4, picture=lambda i, h, w, first=first: texture(first + i, h, w))
    source = videos(
        tmp_path / "raw", [("a.mp4", "a", "train"), ("other.mp4", "b", "train"), ("copy.mp4", "c", "test")]
    )
    ingest(tmp_path, source, options(filters=FilterOptions(max_duplicate_distance=2)))
    kept = {item.clip.attributes["path"]: item.split for item in ClipStore(tmp_path / "clips").take()}

    assert kept == {"copy.mp4": "test", "other.mp4": "train"}
    assert "near duplicate" in (tmp_path / "clips/left_out.csv").read_text()


def test_images_lie_beside_the_clips(tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 40 * i, np.uint8)).save(tmp_path / f"pictures/{i}.png")
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(3)], "caption": list("abc"), "split": "train"})
    table.to_csv(tmp_path / "pictures/captions.csv", index=False)
    pictures = open_source(
        "video_folder", root=str(tmp_path / "pictures"), captions_file="captions.csv", media="image"
    )
    manifest = ingest(tmp_path, None, sources=[digits(4, 2), pictures])
    store = ClipStore(tmp_path / "clips")

    assert (manifest.counts, manifest.images) == ({"test": 2, "train": 4}, 3)
    assert [int(item.clip.video.mean()) for item in store.clips("train", images=True)] == [0, 40, 80]
    assert store.shape == (4, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_worker_processes_write_the_bytes_that_one_process_writes(tmp_path, compression):
    rows = [(f"{i}.mp4", f"caption {i}", "test" if i % 3 == 0 else "train") for i in range(8)]
    source = videos(tmp_path / "raw", rows)
    ingest(tmp_path / "one", source, options(compression=compression))
    ingest(tmp_path / "two", source, options(compression=compression, executor="processes", workers=2))

    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
def test_ray_writes_the_bytes_that_worker_processes_write(tmp_path):
    pytest.importorskip("ray")
    rows = [(f"{i}.mp4", f"caption {i}", "test" if i % 3 == 0 else "train") for i in range(8)]
    source = videos(tmp_path / "raw", rows)
    ingest(tmp_path / "processes", source, options(executor="processes", workers=2))
    ingest(tmp_path / "ray", source, options(executor="ray", workers=2))

    assert contents(tmp_path / "ray") == contents(tmp_path / "processes")


def test_a_task_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    source = digits()
    plan = plan_tasks([source], source.captions().assign(source=0), options(), tmp_path / "work")
    for task in plan[:2]:
        tasks_module.run_task(task)
    written = []
    write = tasks_module._write
    monkeypatch.setattr(
        tasks_module, "_write", lambda task, folder: (written.append(task.key), write(task, folder))[1]
    )
    ingest(tmp_path, source)

    assert written == [task.key for task in plan[2:]]


@pytest.mark.parametrize("change", ["pixels", "settings", "caption"])
def test_a_task_is_done_again_when_what_it_is_made_of_changes(tmp_path, change):
    source = videos(tmp_path / "raw", [("a.mp4", "a", "train")])
    captions, how = source.captions(), options()
    before = plan_tasks([source], captions, how, tmp_path)[0].key
    assert plan_tasks([source], captions, how, tmp_path)[0].key == before
    if change == "pixels":
        write_video(tmp_path / "raw/a.mp4", 12)
    elif change == "settings":
        how = options(cut=CutOptions(num_frames=4, sizes=((16, 16),), fps=4))
    else:
        captions["caption"] = "another"

    assert plan_tasks([source], captions, how, tmp_path)[0].key != before


def test_drawn_clips_are_filtered_like_cut_ones(tmp_path):
    with pytest.raises(UserError, match="no clip is left"):
        ingest(tmp_path / "motion", digits(), options(filters=FilterOptions(min_motion=0.9)))
    manifest = ingest(
        tmp_path / "repeats", digits(), options(filters=FilterOptions(max_duplicate_distance=0))
    )

    assert sum(manifest.counts.values()) > 6  # ten digits look alike to 64 bits now and then
    assert all(item.clip.phash is not None for item in ClipStore(tmp_path / "repeats/clips").take())


def test_by_stride_the_store_has_the_rate_of_most_of_its_clips(tmp_path):
    source = videos(tmp_path / "raw", [("a.mp4", "a", "train"), ("b.mp4", "b", "train")])
    cut = CutOptions(num_frames=4, sizes=((16, 16),), fps=30, stride=2)
    manifest = ingest(tmp_path, source, options(cut=cut))
    report = json.loads((tmp_path / "clips/report.json").read_text())

    assert manifest.fps == 4.0  # the files have eight frames a second
    assert report["rates"] == {"4": sum(manifest.counts.values())}


def test_captions_that_repeat_are_kept_once(tmp_path):
    source = videos(tmp_path / "raw", [("a.mp4", "one", "train"), ("a.mp4", "one", "train")])
    ingest(tmp_path, source)

    assert {(i.caption, i.other_captions) for i in ClipStore(tmp_path / "clips").take()} == {("one", ())}


def test_another_time_limit_does_again_only_what_met_the_one_before(tmp_path):
    rows = [(f"{i}.mp4", f"caption {i}", "train") for i in range(4)]
    source = videos(tmp_path / "raw", rows)
    captions = source.captions().assign(source=0)

    def plan(timeout_s):
        how = options(segments_per_task=1)
        how = replace(how, task=replace(how.task, file_timeout_s=timeout_s))
        return plan_tasks([source], captions, how, tmp_path / "work")

    first, *others = plan(60.0)
    for task in others:
        tasks_module.run_task(task)
    tasks_module.run_task(replace(first, options=replace(first.options, file_timeout_s=1e-6)))

    assert [tasks_module.read_record(task) is None for task in plan(30.0)] == [True, False, False, False]
