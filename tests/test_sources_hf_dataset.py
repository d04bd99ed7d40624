"""Datasets of Hugging Face on disk: saved folders and folders of Parquet."""

from __future__ import annotations

import json
import pickle
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pyoco_pipeline.data.sources import parquet
from pyoco_pipeline.data.sources.hf_dataset import HFDatasetSource
from pyoco_pipeline.data.video import VideoError
from pyoco_pipeline.errors import UserError

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def source(root, **changes) -> HFDatasetSource:
    return HFDatasetSource(root, **{"media_column": "video", "caption_column": "caption", **changes})


def write(
    path: Path, captions: list, media: list | None = None, kind: pa.DataType = MEDIA, **options
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = media or [
        {"bytes": text.encode(), "path": f"{k}.mp4"} for k, text in enumerate(map(str, captions))
    ]
    pq.write_table(pa.table({"video": pa.array(values, kind), "caption": captions}), path, **options)


def contents(data: HFDatasetSource) -> list[bytes]:
    found = []
    for path in data.captions()["path"]:
        with data.local_file(path) as file:
            found.append(file.read_bytes())
    return found


def test_parquet_files_name_their_splits_and_hold_the_files(tmp_path, caplog):
    for name, captions in {"train-00000-of-00001": ["a", "b"], "validation-00000-of-00001": ["c"],
                           "test-00000-of-00001": ["d"]}.items():  # fmt: skip
        write(tmp_path / "data" / f"{name}.parquet", captions)
    table = source(tmp_path).captions().set_index("caption")
    assert table["split"].to_dict() == {"a": "train", "b": "train", "c": "train", "d": "test"}
    assert set(source(tmp_path, validate_split="drop").captions()["caption"]) == {"a", "b", "d"}
    assert (
        "1 validation rows are left out (validate_split): data/validation-00000-of-00001.parquet"
        in caplog.text
    )
    data = source(tmp_path)
    assert contents(data) == [text.encode() for text in data.captions()["caption"]]
    with data.local_file(table["path"]["b"]) as file:
        assert file.suffix == ".mp4"


def test_rows_are_found_in_any_order_and_row_group(tmp_path):
    write(tmp_path / "0.parquet", [str(k) for k in range(50)], row_group_size=20)
    data = pickle.loads(pickle.dumps(source(tmp_path)))  # noqa: S301
    paths = data.captions()["path"].tolist()
    for k in [49, 0, 19, 20, 21, 5, 39, 40, *range(50)]:
        with data.local_file(paths[k]) as file:
            assert file.read_bytes() == str(k).encode()
    with pytest.raises(VideoError, match="has changed since"), data.local_file("0.parquet#50"):
        pass


def test_much_media_in_one_row_group_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 20_000)
    files = [{"bytes": bytes(np.random.default_rng(k).bytes(200)), "path": None} for k in range(150)]
    write(tmp_path / "0.parquet", ["x"] * 150, files, row_group_size=parquet.SMALL_GROUP_ROWS)
    source(tmp_path).captions()
    assert not caplog.records
    write(tmp_path / "0.parquet", ["x"] * 150, files)
    source(tmp_path).captions()
    assert "0.parquet has 150 rows with 0 MB of video in one row group" in caplog.text
    assert "row_group_size=100" in caplog.text


def test_a_table_that_is_written_anew_is_read_anew(tmp_path):
    write(tmp_path / "0.parquet", ["old"])
    data = source(tmp_path)
    assert contents(data) == [b"old"]
    write(tmp_path / "0.parquet", ["newer"])
    assert contents(data) == [b"newer"]


def test_a_list_of_captions_is_a_row_each(tmp_path):
    write(tmp_path / "0.parquet", [["a", "b"], [], None])
    table = source(tmp_path).captions()
    assert table["caption"].tolist() == ["a", "b", None, None]
    assert table["path"].tolist() == ["0.parquet#0", "0.parquet#0", "0.parquet#1", "0.parquet#2"]
    assert table["split"][0] == table["split"][1]


def test_media_may_be_bytes_or_paths_below_the_root(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v/1.mp4").write_bytes(b"one")
    write(tmp_path / "0.parquet", ["a", "b", "c"], ["v/1.mp4", "v/2.mp4", "../x.mp4"], pa.string())
    data = source(tmp_path)
    problems = data.captions()["path_problem"].tolist()
    assert problems[:2] == ["", "does not exist"]
    assert problems[2].startswith("is outside")
    with data.local_file("v/1.mp4") as file:
        assert file.read_bytes() == b"one"
    write(tmp_path / "0.parquet", ["a"], [b"bytes"], pa.binary())
    assert contents(data) == [b"bytes"]


def test_a_cell_names_a_file_is_empty_or_is_missing(tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"one")
    cells = [
        {"bytes": None, "path": "1.mp4"},
        {"bytes": b"", "path": "x"},
        None,
        {"bytes": None, "path": "/etc/passwd"},
    ]
    write(tmp_path / "0.parquet", list("abcd"), cells)
    data = source(tmp_path)
    with data.local_file("0.parquet#0") as file:
        assert file.read_bytes() == b"one"
    for row, reason in [(1, "is empty"), (2, "is missing"), (3, "is outside the data root")]:
        with pytest.raises(VideoError, match=reason), data.local_file(f"0.parquet#{row}"):
            pass


def test_without_a_test_split_rows_are_drawn(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", [str(k) for k in range(200)])
    share = (source(tmp_path, test_share=0.3).captions()["split"] == "test").mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 200) ** 0.5  # five standard deviations of a fair draw
    write(tmp_path / "extra.parquet", ["x"])
    with pytest.raises(UserError, match=r"extra\.parquet names no split, but others"):
        source(tmp_path).captions()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"media_column": "image"}, "has no column image; its columns: video, caption"),
     ({"caption_column": "label"}, "has no column label"),
     ({"caption_column": "video"}, "not text or lists of text"),
     ({"media_column": "caption", "caption_column": "caption"}, None)],
)  # fmt: skip
def test_columns_are_checked(tmp_path, changes, message):
    write(tmp_path / "0.parquet", ["a"])
    if message is None:
        assert source(tmp_path, **changes).captions()["path_problem"].tolist() == ["does not exist"]
        return
    with pytest.raises(UserError, match=message):
        source(tmp_path, **changes).captions()


def test_numbers_are_no_media_and_damage_is_named(tmp_path):
    write(tmp_path / "0.parquet", ["a"], [1], pa.int64())
    with pytest.raises(UserError, match="column video, is int64; a media column has bytes, paths"):
        source(tmp_path).captions()
    (tmp_path / "0.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UserError, match=r"The table .*0\.parquet cannot be read as Parquet"):
        source(tmp_path).captions()
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(UserError, match=r"is no dataset on disk"):
        source(tmp_path).captions()


def test_all_rows_of_a_file_are_of_one_split(tmp_path):
    names = [f"{k}.mp4" for k in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    spelled = [spelling for name in names for spelling in (name, f"./{name}", name)]
    write(tmp_path / "0.parquet", ["x"] * 60, spelled, pa.string())
    table = source(tmp_path, test_share=0.5).captions()
    assert set(table.groupby(np.repeat(names, 3))["split"].nunique()) == {1}
    assert set(table["split"]) == {"train", "test"}
    assert table["path"].tolist() == np.repeat(names, 3).tolist()


def test_a_table_outside_the_root_is_not_read(tmp_path):
    (tmp_path / "root").mkdir()
    write(tmp_path / "0.parquet", ["a"])
    (tmp_path / "root/0.parquet").symlink_to(tmp_path / "0.parquet")
    with pytest.raises(UserError, match="is outside the data root"):
        source(tmp_path / "root").captions()
    data = source(tmp_path / "root")
    with pytest.raises(VideoError, match="is outside the data root"), data.local_file("../0.parquet#0"):
        pass


def test_parquet_in_a_store_reads_like_that_on_disk(tmp_path):
    write(tmp_path / "0.parquet", ["a", "b"])
    url = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{url}/0.parquet", (tmp_path / "0.parquet").read_bytes())
    assert contents(source(url)) == contents(source(tmp_path)) == [b"a", b"b"]


def saved(captions: list[str]):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((2, 2, 3), k, np.uint8)) for k in range(len(captions))]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": pictures, "caption": captions}, features=features)


def images(root, **changes) -> HFDatasetSource:
    return source(root, media_column="image", media="image", **changes)


def test_a_saved_dataset_gives_its_pictures_undecoded(tmp_path):
    saved(["a", "b"]).save_to_disk(tmp_path / "d")
    data = images(tmp_path / "d")
    assert data.captions()["caption"].tolist() == ["a", "b"]
    assert data.captions()["path"].tolist() == ["#0", "#1"]
    for k, content in enumerate(contents(data)):
        assert content.startswith(b"\x89PNG")
        with data.local_file(f"#{k}") as path:
            assert np.asarray(Image.open(path)).max() == k
    with pytest.raises(VideoError, match="has changed since"), data.local_file("#2"):
        pass


def test_a_saved_dataset_dict_has_official_splits(tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    parts = datasets.DatasetDict(train=saved(["a", "b"]), validation=saved(["c"]), test=saved(["d"]))
    parts.save_to_disk(tmp_path / "d")
    table = images(tmp_path / "d").captions()
    assert table["path"].tolist() == ["train#0", "train#1", "validation#0", "test#0"]
    assert table["split"].tolist() == ["train", "train", "train", "test"]
    images(tmp_path / "d", validate_split="drop").captions()
    assert "1 validation rows are left out (validate_split): validation" in caplog.text
    with pytest.raises(VideoError, match="does not exist"), images(tmp_path / "d").local_file("other#0"):
        pass
    with pytest.raises(VideoError, match="is not a row"), images(tmp_path / "d").local_file("../d/test#0"):
        pass


def test_a_saved_dataset_may_lie_in_a_store(tmp_path):
    saved(["a", "b"]).save_to_disk(tmp_path / "d")
    url = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(tmp_path / "d"), url, recursive=True)
    assert contents(images(url)) == contents(images(tmp_path / "d"))


def test_a_saved_dataset_cannot_name_files_elsewhere(tmp_path):
    saved(["a"]).save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d/state.json").read_text())
    state["_data_files"][0]["filename"] = "../other.arrow"
    (tmp_path / "d/state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json does not list data files of its folder"):
        images(tmp_path / "d").captions()
