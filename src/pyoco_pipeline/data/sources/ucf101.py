"""UCF-101 (Soomro et al. 2012, arXiv:1212.0402) as downloaded: videos in a folder a class, and official splits."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pandas as pd

from pyoco_pipeline.data.sources.base import StoredSource, as_text, captions_table
from pyoco_pipeline.data.sources.tables import read_lines, read_table
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)


class UCF101Source(StoredSource):
    """The 13,320 videos of 101 classes, with a class's name or prompts as captions.

    `root` holds `videos`/<Class>/v_<Class>_gNN_cNN.avi, and in the folder `lists` classInd.txt, trainlist0N.txt and
    testlist0N.txt. Clips of one group gNN are cut from one longer video, so a group is in one split only.

    split: 1, 2 or 3, which of the official splits; files that it does not list are counted in the log and not used
    prompts_file: a table with the columns class and caption, one or more rows a class, below `root` or absolute;
        None: the name of the class in words, "ApplyEyeMakeup" as "apply eye makeup"
    """

    kind = "ucf101"

    def __init__(
        self,
        root: str | Path,
        *,
        split: int = 1,
        videos: str = "UCF-101",
        lists: str = "ucfTrainTestlist",
        prompts_file: str | None = None,
        max_copy_mb: float = 4096,
    ) -> None:
        super().__init__(root, max_copy_mb=max_copy_mb)
        if split not in (1, 2, 3):
            raise UserError(f"UCF-101 has the splits 1, 2 and 3, not {split}.")
        self.split = split
        self.videos = videos.strip("/")
        self.lists = lists.strip("/")
        self.prompts_file = prompts_file

    def captions(self) -> pd.DataFrame:
        """A row for every listed video and caption; more columns: class_name, label (from 1), group.

        Raises UserError for absent or unreadable lists, a class that classInd.txt or the prompts lack, and a group
        or video that is in both lists.
        """
        self.check_root(f"{self.videos} and {self.lists}")
        labels = self._labels()
        listed = [
            (name, split)
            for split in ("train", "test")
            for name in self._listed(f"{split}list{self.split:02d}.txt", labels)
        ]
        groups = [group_of(name, self.lists) for name, _ in listed]
        self._check_groups(listed, groups)
        prompts = self._prompts(labels)
        paths = [f"{self.videos}/{name}" for name, _ in listed]
        files = self.storage.locate_all(paths)
        unlisted = set(self.storage.glob(f"{self.videos}/*/v_*")).difference(paths)
        if unlisted:
            logger.warning(
                "%d files below %s are in no list of split %d and are not used; one is %s",
                len(unlisted),
                self.storage.full(self.videos),
                self.split,
                min(unlisted),
            )
        classes = [name.split("/")[0] for name, _ in listed]
        rows = [(k, caption) for k, name in enumerate(classes) for caption in prompts[name]]
        return captions_table(
            [paths[k] for k, _ in rows],
            [caption for _, caption in rows],
            [listed[k][1] for k, _ in rows],
            [files[paths[k]].problem for k, _ in rows],
            names=[listed[k][0].split("/")[-1] for k, _ in rows],
            class_name=[classes[k] for k, _ in rows],
            label=[labels[classes[k]] for k, _ in rows],
            group=[groups[k] for k, _ in rows],
        )

    def _labels(self) -> dict[str, int]:
        """Class -> number, of the lines "1 ApplyEyeMakeup"."""
        labels: dict[str, int] = {}
        place = f"{self.lists}/classInd.txt"
        for number, line in read_lines(self.storage, place):
            fields = line.split()
            if len(fields) != 2 or not fields[0].isdecimal():
                raise UserError(
                    f"Line {number} of {self.storage.full(place)} is {line!r}, not a number and a class."
                )
            labels[fields[1]] = int(fields[0])
        return labels

    def _listed(self, name: str, labels: dict[str, int]) -> list[str]:
        """The videos <Class>/<file> of a list; the lines of a training list end in the class's number."""
        place = f"{self.lists}/{name}"
        files = []
        for number, line in read_lines(self.storage, place):
            file, _, label = line.partition(" ")
            where = f"Line {number} of {self.storage.full(place)}"
            class_name = file.split("/")[0]
            if file.count("/") != 1 or class_name not in labels:
                raise UserError(
                    f"{where} is {line!r}, not a video of a class of classInd.txt: <Class>/<file>."
                )
            if label.strip() and label.strip() != str(labels[class_name]):
                raise UserError(
                    f"{where} gives {class_name} the number {label.strip()}, but classInd.txt gives it "
                    f"{labels[class_name]}; take both from the same download."
                )
            files.append(file)
        return files

    def _check_groups(self, listed: list[tuple[str, str]], groups: list[str]) -> None:
        seen: dict[tuple[str, str], tuple[str, str]] = {}
        for (name, split), group in zip(listed, groups, strict=True):
            key = (name.split("/")[0], group)
            first, first_split = seen.setdefault(key, (name, split))
            if first_split != split:
                raise UserError(
                    f"Split {self.split} of {self.storage.full(self.lists)} has group {group} of {key[0]} in both "
                    f"lists ({first} in {first_split}, {name} in {split}): the same footage would be trained on "
                    "and tested; take the official lists, or mend these."
                )

    def _prompts(self, labels: dict[str, int]) -> dict[str, list[str | None]]:
        if self.prompts_file is None:
            return {name: [words(name)] for name in labels}
        table = read_table(self.storage, self.prompts_file, ("class", "caption"), what="prompts file")
        prompts: dict[str, list[str | None]] = {}
        for row, (name, caption) in enumerate(zip(table["class"], table["caption"], strict=True), start=1):
            place = f"Row {row} of {self.storage.full(self.prompts_file)}, column"
            prompts.setdefault(as_text(name, f"{place} class,") or "", []).append(
                as_text(caption, f"{place} caption,")
            )
        lacking = [name for name in labels if name not in prompts]
        if lacking:
            raise UserError(
                f"The prompts file {self.storage.full(self.prompts_file)} has no caption for the class {lacking[0]}"
                f"{f' and {len(lacking) - 1} more' if lacking[1:] else ''}; write a row for every class."
            )
        return prompts


def words(class_name: str) -> str:
    """A class's name split at its capitals, in small letters: "YoYo" is "yo yo"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", class_name).lower()


def group_of(name: str, place: str) -> str:
    """The group, such as g08, of <Class>/v_<Class>_g08_c01.avi.

    The class is the folder's: the files of HandstandPushups are called v_HandStandPushups_*.
    """
    found = re.search(r"_(g\d+)_c\d+\.\w+$", name)
    if not found:
        raise UserError(f"The lists in {place} name {name!r}, which is not <Class>/v_<Class>_gNN_cNN.avi.")
    return found.group(1)
