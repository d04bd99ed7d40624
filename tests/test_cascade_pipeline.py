"""`kedro run --env cascade`, with the smallest values, from data to report; and `generate` with its stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import video_files as vf
import yaml
from PIL import Image
from projects import kedro_run, make_project, tree

from pyoco_pipeline.cascade.folders import is_none
from pyoco_pipeline.data.clips import ClipStore

pytestmark = pytest.mark.slow

SHAPES = {"base": (8, 16, 16), "interpolation": (36, 16, 16), "sr256": (36, 32, 32)}
CLIPS = 2
SHORT = {"steps": 2, "batch_size": 2, "warmup_steps": 1, "log_every": 1}
TINY: dict[str, Any] = {
    "ingest": {"moving_digits": {"num_train": 16, "num_test": 2}},
    "pretrain_image": {"train": SHORT},
    "finetune_video": {stage: {"train": SHORT | {"image_share": 0.0}} for stage in SHAPES},
    "generate": {
        "num_clips": CLIPS,
        "num_videos": 2,
        "sampler": {"steps": 2},
        "interpolation": {"sampler": {"steps": 2}},
        "sr256": {"sampler": {"steps": 2}},
    },
    "evaluate": {"max_reference_clips": 4},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: merged(base[k], v) if isinstance(base.get(k), dict) else v for k, v in over.items()}
    return base | both


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the whole of `kedro run --env cascade` has run."""
    project = make_project(tmp_path_factory.mktemp("cascade"))
    path = project / "conf/cascade/parameters.yml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), TINY)))
    done = kedro_run(project, "--env", "cascade")
    assert done.exit_code == 0, done.output
    return project


def data(project: Path) -> Path:
    return project / "data/cascade"


def stage_clips(project: Path, stage: str) -> Path:
    return data(project) / "07_model_output/stages" / stage


def generate(project: Path, **params: object) -> Any:
    asked = {f"generate.{key.replace('__', '.')}": value for key, value in params.items()}
    return kedro_run(project, "--env", "cascade", "--pipelines", "generate", params=asked)


@contextmanager
def without(path: Path) -> Iterator[None]:
    """Within, a file or folder is not there."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def test_every_stage_makes_the_same_prompts_in_its_own_shape(project: Path) -> None:
    asked = [item.caption for item in ClipStore(data(project) / "03_primary/clips").take("test", CLIPS)]
    for stage, shape in SHAPES.items():
        store = ClipStore(stage_clips(project, stage))
        assert store.shape == shape
        assert [item.caption for item in store.take()] == asked
        assert store.manifest.fps == (8 if stage == "base" else 40)
    assert is_none(stage_clips(project, "sr1024"))
    made = ClipStore(data(project) / "07_model_output/clips")
    assert made.manifest == ClipStore(stage_clips(project, "sr256")).manifest


def test_people_and_the_report_see_each_stage(project: Path) -> None:
    output = data(project) / "07_model_output"
    for stage in SHAPES:
        assert len(list((output / "stage_videos" / stage).glob("*.mp4"))) == 2
    assert (output / "stage_videos/cascade.png").is_file()
    planned = json.loads((output / "cascade.json").read_text())
    assert [stage["name"] for stage in planned] == list(SHAPES)
    page = (data(project) / "08_reporting/report.html").read_text()
    assert all(stage in page for stage in SHAPES)


def test_a_stage_is_trained_anew_without_the_others(project: Path) -> None:
    models = data(project) / "06_models"
    others = {name: tree(models / name) for name in ("base", "sr256", "inflated")}
    before = tree(models / "interpolation")
    done = kedro_run(
        project, "--env", "cascade", "--pipelines", "finetune_video", "--namespaces", "interpolation"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert tree(models / "interpolation") != before
    assert {name: tree(models / name) for name in others} == others


def test_the_cascade_ends_where_it_is_told_to(project: Path) -> None:
    done = generate(project, last_stage="interpolation", num_clips=1)
    assert done.exit_code == 0, done.output
    assert is_none(stage_clips(project, "sr256"))
    assert ClipStore(data(project) / "07_model_output/clips").shape == SHAPES["interpolation"]


def test_longer_videos_go_through_every_stage(project: Path) -> None:
    done = generate(project, num_frames=12, num_clips=1)
    assert done.exit_code == 0, done.output
    frames = [ClipStore(stage_clips(project, stage)).shape[0] for stage in SHAPES]
    assert frames == [12, 11 * 5 + 1, 11 * 5 + 1]


@pytest.mark.parametrize(
    ("missing", "message"),
    [("sr256", "run `kedro run --pipelines finetune_video` first"),
     ("sr256/temporal.safetensors", "sr256/temporal.safetensors is missing: train the stage anew")],
)  # fmt: skip
def test_a_missing_stage_is_said_before_anything_is_sampled(
    project: Path, missing: str, message: str
) -> None:
    before = tree(data(project) / "07_model_output")
    with without(data(project) / "06_models" / missing):
        done = generate(project)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert tree(data(project) / "07_model_output") == before


def test_a_number_of_frames_out_of_reach_is_said_before_anything_is_sampled(project: Path) -> None:
    before = tree(data(project) / "07_model_output")
    done = generate(project, num_frames=11)
    assert done.exit_code == 1
    assert "num_frames is 11, out of reach for windows of 8 frames" in " ".join(done.output.split())
    assert tree(data(project) / "07_model_output") == before


def test_a_prompt_may_be_empty_and_the_end_of_a_long_one_is_named(project: Path, caplog: Any) -> None:
    long = "a red digit 3 moving slowly up and down " * 4 + "in the rain"
    with caplog.at_level("WARNING", "pyoco_pipeline"):
        done = generate(project, prompts=f"['', {long}]", num_clips=2, last_stage="base")
    assert done.exit_code == 0, done.output
    assert [item.caption for item in ClipStore(stage_clips(project, "base")).take()] == ["", long]
    warned = [record.getMessage() for record in caplog.records if "not seen" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].endswith("in the rain")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos of two seconds, one that is too short, and a file that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    vf.write_video(folder / "a-street.mp4", 16)
    vf.write_video(folder / "b-tree.mp4", 16)
    vf.write_video(folder / "c-short.mp4", 2)
    (folder / "d-none.mp4").write_bytes(b"no video")
    return folder


def slowly_lighter(index: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 20 + 5 * index, np.uint8)


def test_videos_of_the_user_are_enlarged_from_the_stage_that_they_are_for(
    project: Path, videos: Path, tmp_path: Path
) -> None:
    for name in ("a-street", "b-tree"):  # 36 frames at the 40 of the stage
        vf.write_video(
            videos / f"{name}.mp4", 36, timestamps_ms=[25 * k for k in range(36)], picture=slowly_lighter
        )
    done = generate(project, video__clips=videos, video__stage="sr256", num_clips=3)
    assert done.exit_code == 0, done.output
    assert is_none(stage_clips(project, "base"))
    items = ClipStore(stage_clips(project, "sr256")).take()
    assert [item.caption for item in items] == ["a-street", "b-tree", "a-street"]
    assert items[0].clip.video.shape == (*SHAPES["sr256"], 3)


def test_a_picture_becomes_a_video_whose_first_frame_it_stays(project: Path, tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[8:24, 8:24] = (200, 40, 40)
    Image.fromarray(picture).save(tmp_path / "a red square.png")
    done = generate(project, video__clips=tmp_path, video__keep_frames="[0]", last_stage="base", num_clips=1)
    assert done.exit_code == 0, done.output
    (item,) = ClipStore(stage_clips(project, "base")).take()
    assert item.caption == "a red square"
    first = item.clip.video[0].astype(int)
    assert abs(first[6, 6] - [200, 40, 40]).max() <= 2
    assert abs(first[1, 1]).max() <= 2


def test_a_folder_without_anything_usable_is_refused_in_one_sentence(project: Path, tmp_path: Path) -> None:
    missing = generate(project, video__clips=tmp_path / "none", video__sigma=3)
    assert missing.exit_code == 1
    assert "none is no folder: give one of videos or pictures" in " ".join(missing.output.split())
    vf.write_video(tmp_path / "short.mp4", 2)
    short = generate(project, video__clips=tmp_path, video__sigma=3)
    assert short.exit_code == 1
    assert "none of the 1 files in" in " ".join(short.output.split())
    shutil.rmtree(tmp_path)
