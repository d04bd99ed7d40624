"""The caption rules as a validator of a Kedro catalog entry."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from pyoco_pipeline.data.caption_columns import derive_columns
from pyoco_pipeline.data.captions import SHARD_ROWS, CaptionCheck, check_captions
from pyoco_pipeline.data.captions_html import caption_report_html
from pyoco_pipeline.data.drift import Drift, DriftOptions, compare_with_previous, parse_drift_options
from pyoco_pipeline.data.executors import Executor, run_tasks
from pyoco_pipeline.data.expectations import parse_rules, write_data_docs
from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class CaptionValidator:
    """Judges the captions that are saved, writes an HTML page about them and returns the rows to keep.

    filepath: of the page; what changed since the previous version is beside it, <stem>_drift.json
    expectations: the rules, as the catalog gives them
    shard_rows: rows judged at once
    executor: where shards are judged: inline (one after the other), processes (of this machine) or ray
    workers: processes or Ray tasks at a time, by default one per core; ray_address: of a running cluster
    data_docs: {path: folder} adds each validation to Great Expectations' own site there; the whole table is judged once
        more for it, and a browser fetches the site's styles from the web
    drift: `DriftOptions`; the filepath among them is normally that of the catalog entry, which is compared before it
        is replaced

    Relative paths start at the working directory; Kedro makes those of a catalog start at the project.
    """

    def __init__(
        self,
        filepath: str,
        expectations: Sequence[Mapping[str, Any]],
        *,
        shard_rows: int = SHARD_ROWS,
        executor: Executor = "inline",
        workers: int | None = None,
        ray_address: str | None = None,
        data_docs: Mapping[str, str] | None = None,
        drift: Mapping[str, Any] | None = None,
    ) -> None:
        self.report = Path(filepath)
        self.expectations = expectations
        self.shard_rows = shard_rows
        self.executor, self.workers, self.ray_address = executor, workers, ray_address
        self.data_docs, self.drift = data_docs, drift

    def validate(self, data: pd.DataFrame) -> pd.DataFrame:
        """The kept rows of `data`.

        Raises UserError when a `fail` rule is broken, no row is left, the captions drifted and `drift.action` is fail,
        or an option is not one.
        """
        options = None if self.drift is None else parse_drift_options(self.drift)
        check = check_captions(data, self.expectations, shard_rows=self.shard_rows, map=self._judge_shards)
        drift = None if options is None else compare_with_previous(check.kept, options)
        _write_atomically(self.report, caption_report_html(check, drift))
        if drift is not None:
            _write_atomically(self.report.with_name(f"{self.report.stem}_drift.json"), drift.json())
        if self.data_docs is not None:
            self._write_data_docs(data, self.data_docs)
        self._say(check)
        self._stop_if_broken(check)
        if drift is not None and options is not None:
            self._judge_drift(drift, options)
        return check.kept

    def _judge_shards(self, judge: Callable[[T], R], shards: Sequence[T]) -> list[R]:
        results = dict(
            run_tasks(
                judge,
                shards,
                executor=self.executor,
                workers=self.workers,
                ray_address=self.ray_address,
            )
        )
        return [results[position] for position in range(len(shards))]

    def _write_data_docs(self, data: pd.DataFrame, options: Mapping[str, str]) -> None:
        if set(options) != {"path"}:
            raise UserError(
                f"data_docs of the captions' validator is {dict(options)!r}; write {{path: <folder>}} or null."
            )
        frame = derive_columns(data)
        site = write_data_docs(
            Path(options["path"]), frame, parse_rules(self.expectations, list(frame.columns))
        )
        logger.info("Great Expectations' pages about the captions: %s", site)

    def _say(self, check: CaptionCheck) -> None:
        for rule in check.rules:
            if rule.action == "warn" and not rule.success:
                first = f", first in row {rule.examples[0].row_id}" if rule.examples else ""
                logger.warning("Captions: %s (%s%s).", rule.reason, rule.count_in_words, first)
        if dropped := len(check.dropped):
            total = len(check.kept) + dropped
            logger.warning("Dropped %d of %d captions; %s says why.", dropped, total, self.report)

    def _stop_if_broken(self, check: CaptionCheck) -> None:
        if check.failed or check.kept.empty:
            fault = "break a rule that must hold" if check.failed else "have no row left to train on"
            raise UserError(
                f"The captions {fault}; correct the table or the rules.\n{check.summary()}\nSee {self.report}."
            )

    def _judge_drift(self, drift: Drift, options: DriftOptions) -> None:
        if drift.nothing_to_compare:
            logger.info(
                "Captions are compared with nothing: %s (%s).", drift.nothing_to_compare, options.filepath
            )
        found = ", ".join(f"{s.name} {s.value:.3g} (limit {s.limit:.3g})" for s in drift.exceeded)
        if found and options.action == "fail":
            raise UserError(
                f"The captions differ from the previous version, {options.filepath}: {found}. Correct the table, or "
                f"take it as it is with drift.action: warn. See {self.report}."
            )
        if found:
            logger.warning("Captions differ from the previous version: %s; see %s.", found, self.report)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
