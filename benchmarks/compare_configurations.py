"""Any two configurations of a study, tested over seeds: what its page does not compare by itself.

    python benchmarks/compare_configurations.py data/study_sigma/08_reporting/alpha_study.json \\
        "iid P_mean=2" "iid P_mean=1.2"   "iid P_mean=0.4 sigma_max=320" "iid P_mean=0.4"

Configurations are taken two by two, by the names that the page gives them; `sigma_max=…` or `solver_steps=…` behind a
name takes its clips of that sampler. Without names all names are printed. Each line is the difference of the scores at
the last step that most seeds of both have reached, with the interval of confidence 95%, p of the paired t test, and p
by Holm's method over all lines. P_std is part of a name where it is not 1.2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyoco_pipeline.study.statistics import Paired, holm, paired

_SAMPLERS = ("sigma_max", "solver_steps")


def scores(study: Mapping[str, Any], name: str, metric: str) -> dict[int, dict[int, float]]:
    """Of a configuration, or of its clips by another sampler, the scores after training: by step, then by seed.

    Raises SystemExit where there are none.
    """
    configuration, varied, value = _parsed(name)
    cells = [cell for cell in study["cells"] if cell["configuration"] == configuration]
    if not cells:
        raise SystemExit(f"No configuration is called {configuration!r}: without names all are printed.")
    found: dict[int, dict[int, float]] = {}
    for cell in cells:
        rows = cell["evaluations"]
        if varied:
            rows = [row | {"step": cell["until"]} for row in cell.get(varied, ()) if row[varied] == value]
        for row in rows:
            if metric in row["values"] and row["step"] > 0:
                found.setdefault(row["step"], {})[cell["seed"]] = row["values"][metric]
    if not found:
        raise SystemExit(f"{name!r} has no {metric} after training: see `cells` in the file for what it has.")
    return found


def _parsed(name: str) -> tuple[str, str, float]:
    """The configuration's name, and what was varied of its sampler, if anything, with its value."""
    configuration, _, last = name.rpartition(" ")
    varied, _, value = last.partition("=")
    if varied not in _SAMPLERS:
        return name, "", 0.0
    try:
        return configuration, varied, float(value)
    except ValueError:
        raise SystemExit(f"{name!r}: {value!r} is no number.") from None


def compared(study: Mapping[str, Any], names: Sequence[str], metric: str) -> list[tuple[int, Paired]]:
    """Step and test of the first of each two names against the second, at the last step with most seeds in common.

    Raises SystemExit where they have no step and seed in common.
    """
    tests = []
    for a, b in zip(names[::2], names[1::2], strict=True):
        ours, theirs = scores(study, a, metric), scores(study, b, metric)
        found = [(s, paired(ours[s], theirs[s], study["level"])) for s in ours.keys() & theirs.keys()]
        some = [(step, test) for step, test in found if test is not None]
        if not some:
            raise SystemExit(f"{a!r} and {b!r} were not scored at one step with a seed in common.")
        tests.append(max(some, key=lambda pair: (len(pair[1].seeds), pair[0])))
    return tests


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="a study's alpha_study.json")
    parser.add_argument("names", nargs="*", help="of configurations, two by two")
    parser.add_argument("--metric", help="the study's own by default")
    arguments = parser.parse_intermixed_args()
    try:
        study = json.loads(arguments.study.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{arguments.study} can't be read as a study: {error}") from None
    names, metric = arguments.names, arguments.metric or study["metric"]
    if not names:
        print("\n".join(dict.fromkeys(cell["configuration"] for cell in study["cells"])))
        return
    if len(names) % 2:
        raise SystemExit(f"{len(names)} names: they are taken two by two.")
    tests = compared(study, names, metric)
    print(f"{metric}, the first less the second")
    rows = zip(names[::2], names[1::2], tests, holm([test.p_t for _, test in tests]), strict=True)
    for a, b, (step, test), adjusted in rows:
        d = test.difference
        interval = f"{d.mean:.3g} [{d.low:.3g}, {d.high:.3g}]"
        p = f"p = {test.p_t:.2g}, Holm = {adjusted:.2f}"
        print(f"{a} against {b} at step {step}: {interval}, {p}, {d.count} seeds")


if __name__ == "__main__":
    main()
