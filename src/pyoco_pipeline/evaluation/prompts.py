"""The table of prompts of a zero-shot protocol, and whether the generated clips are those of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pyoco_pipeline.errors import UserError


def read_prompts(path: str | Path) -> dict[str, int]:
    """Prompt -> weight of a .csv, .jsonl or .parquet table with the columns prompt and, if need be, count.

    count: how many clips, or how many real videos there are of the prompt's class; without it every row counts one, and
    a repeated prompt once more. Raises UserError for a table that cannot be read, a blank prompt, or a count that is no
    whole number above zero.
    """
    from pyoco_pipeline.data.sources.tables import read_table
    from pyoco_pipeline.data.storage import Storage

    path = Path(path)
    if not path.is_file():
        raise UserError(f"The prompts file {path} is missing: correct evaluate.prompts.")
    table = read_table(Storage(path.parent), path.name, ("prompt",), what="prompts file")
    counts = table["count"] if "count" in table.columns else [1] * len(table)
    prompts: Counter[str] = Counter()
    for row, (prompt, count) in enumerate(zip(table["prompt"], counts, strict=True), start=1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(
                f"Row {row} of {path}, column prompt, is blank: write a prompt, or delete the row."
            )
        try:
            number = int(str(count).strip().removesuffix(".0"))
        except ValueError:
            number = 0
        if number < 1:
            raise UserError(
                f"Row {row} of {path}, column count, holds {count!r}: write a whole number above 0."
            )
        prompts[prompt.strip()] += number
    return dict(prompts)


def expected_counts(prompts: dict[str, int], total: int) -> dict[str, int]:
    """At least how many of `total` clips each prompt has, in proportion to its weight, rounded down."""
    whole = sum(prompts.values())
    return {prompt: total * weight // whole for prompt, weight in prompts.items()}


def check_captions(
    captions: Iterable[str], prompts: dict[str, int], total: int, *, place: str, allow_fewer: bool
) -> str | None:
    """The warning of clips that are not those of the prompts where that is allowed, None where they are.

    Prompts get their share of `total` clips, rounded up or down. Raises UserError where clips of a prompt are missing
    and `allow_fewer` is not set, and for captions that are no prompts.
    """
    found = Counter(caption.strip() for caption in captions)
    strange = sorted(found.keys() - prompts.keys())
    if strange:
        raise UserError(
            f"{place} has {sum(found[c] for c in strange)} clips whose caption is none of the prompts, the first "
            f"{strange[0]!r}: generate clips for the prompts of evaluate.prompts."
        )
    expected = expected_counts(prompts, total)
    short = {prompt: num - found[prompt] for prompt, num in expected.items() if found[prompt] < num}
    if not short:
        return None
    prompt, lacking = next(iter(short.items()))
    said = (
        f"{place} lacks {sum(short.values()):,} clips of {len(short)} of {len(prompts)} prompts: of {prompt!r} it has "
        f"{found[prompt]} where its share of {total:,} is {found[prompt] + lacking}"
    )
    if not allow_fewer:
        raise UserError(f"{said}. Generate them, or set evaluate.allow_fewer, which marks the metric's name.")
    return said
