"""A disk without room for a checkpoint: one sentence, and the same command goes on from the checkpoint before."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import make_batches, make_objective, make_video_unet, train_settings

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.training.checkpoint import CheckpointFolder
from pyoco_pipeline.training.trainer import train

ROOM = 64 << 10  # bytes that are left: less than a checkpoint's weights, so that writing them begins


class SmallDisk:
    """A folder that can be filled: a disk of its own in memory, or, without the right to mount, a limit of files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
        mounted = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False)
        self.is_mounted = bool(mounted) and mounted.returncode == 0

    def fill(self) -> None:
        if self.is_mounted:
            self.filler.write_bytes(bytes(shutil.disk_usage(self.folder).free - ROOM))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def make_room(self) -> None:
        self.filler.unlink(missing_ok=True)
        if not self.is_mounted:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    try:
        yield disk
    finally:
        disk.make_room()
        if disk.is_mounted:
            subprocess.run(
                ["umount", "--lazy", str(disk.folder)], check=True
            )  # weights that were read are mapped


def test_a_full_disk_ends_training_with_a_sentence_and_the_same_command_goes_on_from_the_checkpoint_before(
    disk, tmp_path, digits_store, digits_embeddings
):
    settings = train_settings(checkpoint_every=3, sample_every=4)

    def trained(checkpoints: Path, happens=None) -> str:
        network = make_video_unet(trained=False)
        batches = make_batches(digits_store, digits_embeddings, settings)
        train(network, batches, make_objective(), settings, stage="base", checkpoints=checkpoints, identity={},
              validate=happens)  # fmt: skip
        return weights_sha256(network)

    checkpoints = disk.folder / "checkpoints"
    with pytest.raises(
        UserError, match=r"no room for the checkpoint of step 6, \d+\.\d MB \(.*\): make room"
    ) as said:
        trained(checkpoints, lambda step, _: disk.fill())

    assert str(checkpoints) in str(said.value)
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000003"]
    snapshot = CheckpointFolder(checkpoints, keep=2).newest()
    assert snapshot is not None
    assert snapshot.step == 3
    disk.make_room()
    assert trained(checkpoints) == trained(tmp_path / "uninterrupted")


def test_other_failures_of_a_disk_are_not_taken_for_a_full_one(tmp_path, digits_store, digits_embeddings):
    settings = train_settings()
    (tmp_path / "checkpoints").write_text("a file where the folder should be")

    with pytest.raises(OSError, match="checkpoints"):
        train(make_video_unet(), make_batches(digits_store, digits_embeddings, settings), make_objective(), settings,
              stage="base", checkpoints=tmp_path / "checkpoints", identity={})  # fmt: skip
