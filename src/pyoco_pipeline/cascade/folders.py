"""Folders of stages that a cascade may not have: they say so, so that nothing looks for what is not meant to be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

_NONE = "none.json"


def write_none(folder: Path, *, stage: str) -> None:
    """Write down that this cascade has no such stage."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NONE).write_text(json.dumps({"stage": stage}) + "\n")


def is_none(folder: Path) -> bool:
    """Whether the folder is of a stage that the cascade does not have."""
    return (folder / _NONE).is_file()


def existing(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of stages that the cascade has, in their order."""
    return {name: folder for name, folder in folders.items() if not is_none(folder)}


def link_folder(folder: Path, *, source: Path) -> None:
    """Fill `folder` with the files of `source`: as links to the same bytes on one disk, else as copies."""
    for path in sorted(source.rglob("*")):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(path)
        except OSError:  # another disk, or one without links
            shutil.copy2(path, place)
