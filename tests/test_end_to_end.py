"""The whole method, from data to report: on moving digits as a user starts it, and on a folder of real videos."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import video_files as vf
from projects import kedro_run, make_project

from pyoco_pipeline.data.clips import ClipStore

pytestmark = pytest.mark.slow

ARTEFACTS = [
    "02_intermediate/captions.parquet",
    "02_intermediate/captions.html",
    "03_primary/clips/manifest.json",
    "03_primary/clips/quarantine.csv",
    "04_feature/text_embeddings",
    "06_models/image",
    "06_models/inflated/temporal.safetensors",
    "06_models/base/temporal.safetensors",
    "07_model_output/clips/manifest.json",
    "07_model_output/videos",
    "07_model_output/contact_sheet.png",
    "08_reporting/history_image.json",
    "08_reporting/history_base.json",
    "08_reporting/metrics.json",
    "08_reporting/timings.json",
    "08_reporting/report.html",
]
INJECTION = "<script>alert('from a caption')</script>"


class Links(HTMLParser):
    """What a page loads or runs: the values of src, href, poster and data, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [v or "" for name, v in attrs if name in ("src", "srcset", "href", "poster", "data")]


def assert_self_contained(page: str) -> None:
    outside = [link for link in Links(page).loaded if not link.startswith(("data:", "#"))]
    assert outside == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#)", page)


def embedded_videos(page: str) -> int:
    return sum(link.startswith(("data:video/mp4", "data:image/webp")) for link in Links(page).loaded)


def assert_measured(metrics: dict[str, Any], name: str, num_generated: int) -> None:
    """A number is read beside its counts, its extractor and what real clips score at that count."""
    entry = metrics["metrics"][name]
    assert isinstance(entry["value"], float)
    assert entry["num_generated"] == num_generated
    assert entry["num_held_out"] > 0
    assert entry["num_reference"] > 0
    assert re.fullmatch(r"[0-9a-f]{64}", entry["extractor_sha256"])
    real = entry["floor"] if name.startswith(("fvd", "fid")) else entry["real"]
    assert isinstance(real, float)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `kedro run --env ci` has run, in a process of its own and tracked as by default."""
    project = make_project(tmp_path_factory.mktemp("digits"))
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("kedro")), "run", "--env", "ci"],
        cwd=project,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return project


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_on_digits_leaves_every_artefact(digits: Path) -> None:
    data = digits / "data/ci"
    assert [name for name in ARTEFACTS if not (data / name).exists()] == []
    assert len(list((data / "07_model_output/videos").glob("*.mp4"))) == 3
    assert not list(data.rglob(".writing-*"))
    assert not list(data.rglob(".old-*"))


def test_clips_are_kept_losslessly_and_one_per_prompt(digits: Path) -> None:
    real, made = (ClipStore(digits / "data/ci" / d) for d in ("03_primary/clips", "07_model_output/clips"))
    assert made.shape == real.shape
    assert sum(made.manifest.counts.values()) == 6
    asked = [item.caption for item in real.take("test", 6)]
    assert [item.caption for item in made.take()] == asked


def test_histories_hold_the_steps_of_both_stages(digits: Path) -> None:
    reporting = digits / "data/ci/08_reporting"
    assert [row["step"] for row in read_json(reporting / "history_image.json")] == [1, 2]
    base = read_json(reporting / "history_base.json")
    assert [(row["stage"], row["step"]) for row in base] == [("base", step) for step in (1, 2, 3, 4)]


def test_metrics_of_digits_come_with_counts_extractor_and_floor(digits: Path) -> None:
    metrics = read_json(digits / "data/ci/08_reporting/metrics.json")
    names = ["fvd_digits3d", "is_digits3d", "caption_accuracy", "fid_lite0", "temporal_consistency"]
    assert list(metrics["metrics"]) == names
    assert metrics["refused"] == {}
    for name in names:
        assert_measured(metrics, name, num_generated=6)
    assert {"digit", "colour", "direction", "speed"} <= set(
        metrics["metrics"]["caption_accuracy"]["attributes"]
    )


def test_the_report_is_one_file_with_the_videos_in_it(digits: Path) -> None:
    page = (digits / "data/ci/08_reporting/report.html").read_text()
    assert_self_contained(page)
    assert embedded_videos(page) >= 6  # three generated ones, and real ones beside them
    for name in ("fvd_digits3d", "is_digits3d", "caption_accuracy", "fid_lite0", "temporal_consistency"):
        assert name in page
    for item in ClipStore(digits / "data/ci/07_model_output/clips").take(limit=3):
        assert item.caption in page
    assert str(digits) not in page


def test_the_run_is_in_mlflow_with_parameters_curves_and_artifacts(digits: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{digits / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pyoco_pipeline")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert params["finetune_video.base.noise.kind"] == "progressive"
    assert params["finetune_video.base.noise.alpha"] == "2.0"
    assert params["ingest.source"] == "moving_digits"
    curve = client.get_metric_history(run.info.run_id, "base/loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]
    stored = read_json(digits / "data/ci/08_reporting/metrics.json")["metrics"]
    assert {name: run.data.metrics[name] for name in stored} == {
        name: pytest.approx(entry["value"]) for name, entry in stored.items()
    }
    assert run.data.metrics["fvd_digits3d_floor"] == pytest.approx(stored["fvd_digits3d"]["floor"])
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "metrics.json", "contact_sheet.png", "videos"} <= files
    assert run.data.tags["env"] == "ci"
    assert run.data.tags["clips.sha256"] == ClipStore(digits / "data/ci/03_primary/clips").manifest.sha256


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the four real videos, one cut short and one with a hostile caption have been run."""
    project = make_project(tmp_path_factory.mktemp("videos"))
    folder = project / "data/01_raw/videos"
    folder.mkdir()
    real = vf.real_videos()
    assert len(real) == 4
    rows = []
    for number, path in enumerate(real):
        shutil.copy(path, folder)
        rows.append((path.name, f"real footage number {number}", "test" if number == 3 else "train"))
    shutil.copy(real[0], folder / "torn.mp4")
    vf.cut(folder / "torn.mp4", 0.3)
    rows.append(("torn.mp4", "a download that broke off", "train"))
    shutil.copy(real[1], folder / "hostile.mp4")
    rows.append(("hostile.mp4", INJECTION, "train"))
    table = pd.DataFrame(rows, columns=["path", "caption", "split"])
    table.to_csv(folder / "captions.csv", index=False)
    small = {
        "ingest.height": 16,
        "ingest.width": 16,
        "ingest.max_clips_per_row": 4,
        "pretrain_image.train.steps": 3,
        "pretrain_image.train.warmup_steps": 1,
        "finetune_video.base.train.steps": 3,
        "finetune_video.base.train.warmup_steps": 1,
        "finetune_video.base.train.batch_size": 2,
        "generate.num_clips": 4,
        "generate.sampler.steps": 2,
        "generate.num_videos": 2,
    }
    result = kedro_run(project, "--env", "videos", params=small)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return project


def test_a_run_on_real_videos_leaves_every_artefact(videos: Path) -> None:
    assert [name for name in ARTEFACTS if not (videos / "data/videos" / name).exists()] == []


def test_real_videos_become_clips_of_the_size_asked_for(videos: Path) -> None:
    store = ClipStore(videos / "data/videos/03_primary/clips")
    assert store.manifest.kind == "video_folder"
    assert store.shape == (8, 16, 16)
    assert set(store.manifest.counts) == {"train", "test"}
    captions = {item.caption for item in store.take()}
    assert captions <= {f"real footage number {number}" for number in range(4)}
    assert all(item.clip.video.std() > 1 for item in store.take())


def test_a_torn_video_is_set_aside_with_its_reason_and_the_run_goes_on(videos: Path) -> None:
    quarantine = pd.read_csv(videos / "data/videos/03_primary/clips/quarantine.csv")
    assert quarantine["path"].tolist() == ["torn.mp4"]
    assert quarantine["row_id"].tolist() == ["000005-torn.mp4"]
    assert len(quarantine["reason"].iloc[0]) > 10
    assert "torn.mp4" in (videos / "data/videos/08_reporting/report.html").read_text()


def test_a_caption_with_markup_is_dropped_and_never_reaches_a_page_as_markup(videos: Path) -> None:
    data = videos / "data/videos"
    captions = pd.read_parquet(data / "02_intermediate/captions.parquet")
    assert "hostile.mp4" not in captions["path"].tolist()
    for name in ("02_intermediate/captions.html", "08_reporting/report.html"):
        page = (data / name).read_text()
        assert INJECTION not in page
        assert "<script>alert" not in page
        assert_self_contained(page)
    assert "markup" in (data / "02_intermediate/captions.html").read_text()


def test_digits_metrics_are_refused_in_a_sentence_and_the_general_ones_computed(videos: Path) -> None:
    metrics = read_json(videos / "data/videos/08_reporting/metrics.json")
    assert set(metrics["metrics"]) == {"fid_lite0", "temporal_consistency"}
    for name in metrics["metrics"]:
        assert_measured(metrics, name, num_generated=4)
    assert set(metrics["refused"]) == {"fvd_digits3d", "is_digits3d", "caption_accuracy"}
    for reason in metrics["refused"].values():
        assert reason.startswith("Digits3D reads moving digits only")
        assert reason.endswith(".")


def test_the_report_on_real_videos_holds_them(videos: Path) -> None:
    page = (videos / "data/videos/08_reporting/report.html").read_text()
    assert embedded_videos(page) >= 4
    assert "real footage number 3" in page
