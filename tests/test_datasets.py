"""Folders as datasets: a folder is whole or not there."""

import pytest
from kedro.io import DataCatalog, DatasetError

from pyoco_pipeline.datasets.folder import FolderDataset, WorkFolderDataset
from pyoco_pipeline.errors import UserError


def writer(text: str, extra: str | None = None):
    """A function that writes a file, or two."""

    def write(folder):
        (folder / "file").write_text(text)
        (folder / "deeper").mkdir()
        if extra:
            (folder / extra).write_text(text)

    return write


def stopping(error: BaseException):
    """A writer that stops half-way."""

    def write(folder):
        (folder / "file").write_text("half")
        raise error

    return write


@pytest.fixture
def target(tmp_path):
    return tmp_path / "layer" / "folder"


@pytest.fixture
def dataset(target):
    return FolderDataset(filepath=str(target))


def test_what_a_writer_wrote_is_the_folder(dataset, target):
    assert not dataset.exists()
    dataset.save(writer("new"))

    assert dataset.exists()
    assert dataset.load() == target
    assert (target / "file").read_text() == "new"


def test_a_writer_gets_an_empty_folder_beside_the_target(dataset, target):
    dataset.save(writer("old", extra="only-old"))
    seen = []
    dataset.save(lambda folder: seen.append((folder, list(folder.iterdir()))))

    [(folder, held)] = seen
    assert folder.parent == target.parent
    assert folder != target
    assert held == []


def test_saving_replaces_the_whole_folder(dataset, target):
    dataset.save(writer("old", extra="only-old"))
    dataset.save(writer("new"))

    assert sorted(path.name for path in target.iterdir()) == ["deeper", "file"]
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError("disk full"), UserError("bad rows"), KeyboardInterrupt()])
def test_a_writer_that_stops_leaves_the_old_folder_and_nothing_half_written(dataset, target, error):
    dataset.save(writer("old"))

    with pytest.raises((DatasetError, KeyboardInterrupt)) as raised:
        dataset.save(stopping(error))
    assert error in (raised.value, raised.value.__cause__)
    assert (target / "file").read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_first_writer_that_stops_leaves_no_folder(dataset, target):
    with pytest.raises(DatasetError):
        dataset.save(stopping(OSError("disk full")))

    assert not dataset.exists()
    assert list(target.parent.iterdir()) == []


def test_what_a_killed_run_left_behind_is_cleared_away(dataset, target):
    dataset.save(writer("old"))
    for name in (".writing-folder", ".old-folder"):
        target.with_name(name).mkdir()
        writer("left behind")(target.with_name(name))
    dataset.save(writer("new"))

    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_is_not_there_says_what_to_do(dataset, target):
    with pytest.raises(DatasetError) as raised:
        dataset.load()

    assert isinstance(raised.value.__cause__, UserError)
    assert str(raised.value.__cause__) == f"{target} is missing: run the pipeline that makes it first."


def test_a_catalog_makes_both_kinds(tmp_path):
    kind = "pyoco_pipeline.datasets.{}"
    catalog = DataCatalog.from_config(
        {
            "model": {"type": kind.format("FolderDataset"), "filepath": str(tmp_path / "model")},
            "checkpoints": {
                "type": kind.format("WorkFolderDataset"),
                "filepath": str(tmp_path / "checkpoints"),
            },
        }
    )
    catalog.save("model", writer("new"))

    assert (catalog.load("model") / "file").read_text() == "new"
    assert catalog.load("checkpoints").is_dir()


def test_a_work_folder_is_made_and_keeps_what_is_in_it(target):
    dataset = WorkFolderDataset(filepath=str(target))
    assert dataset.exists()
    (dataset.load() / "step").write_text("kept")

    assert (dataset.load() / "step").read_text() == "kept"


def test_a_work_folder_is_not_saved_to(target):
    with pytest.raises(DatasetError) as raised:
        WorkFolderDataset(filepath=str(target)).save("anything")

    assert "work folder" in str(raised.value.__cause__)


def test_a_folder_at_an_address_is_read_and_never_written():
    import fsspec

    dataset = FolderDataset(filepath="memory://bucket/clips")
    assert not dataset.exists()
    fsspec.filesystem("memory").pipe("/bucket/clips/manifest.json", b"{}")

    assert dataset.exists()
    assert dataset.load() == "memory://bucket/clips"
    with pytest.raises(DatasetError) as raised:
        dataset.save(writer("new"))
    assert "only read from" in str(raised.value.__cause__)


def test_a_link_to_another_place_stays_one(tmp_path):
    (tmp_path / "large disk/folder").mkdir(parents=True)
    (tmp_path / "folder").symlink_to(tmp_path / "large disk/folder")
    dataset = FolderDataset(filepath=str(tmp_path / "folder"))
    for text in ("old", "new"):
        dataset.save(writer(text))

    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "large disk/folder/file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "large disk"]


def test_what_a_writer_gives_back_is_called_when_the_folder_is_in_place(dataset, target):
    seen = []

    def write(folder):
        writer("new")(folder)
        return lambda: seen.append((target / "file").read_text())

    dataset.save(write)
    assert seen == ["new"]


def test_a_folder_that_was_taken_away_before_the_new_one_was_there_comes_back(dataset, target):
    dataset.save(writer("old"))
    target.rename(target.with_name(".old-folder"))

    assert dataset.exists()
    assert (dataset.load() / "file").read_text() == "old"
