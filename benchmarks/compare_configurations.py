"""Any two configurations of a study, tested over seeds: what its page does not compare by itself.

    python benchmarks/compare_configurations.py data/study_sigma/08_reporting/alpha_study.json \\
        "iid P_mean=2" "iid P_mean=1.2"   "iid P_mean=0.4 sigma_max=320" "iid P_mean=0.4"

Configurations are taken two by two, by the names that the page gives them; `sigma_max=…` or `solver_steps=…` behind a
name takes its clips of that sampler. Without names all names are printed. Each line is the difference of the scores at
the last step, with the interval of confidence 95%, p of the paired t test, and p by Holm's method over all lines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyoco_pipeline.study.statistics import Paired, holm, paired

_SAMPLERS = ("sigma_max", "solver_steps")


def scores(study: Mapping[str, Any], name: str, metric: str) -> dict[int, float]:
    """The last scores by seed of a configuration, or of its clips by another sampler.

    Raises SystemExit where there are none.
    """
    configuration, _, last = name.rpartition(" ")
    varied, _, value = last.partition("=")
    if varied not in _SAMPLERS:
        configuration, varied = name, ""
    cells = [cell for cell in study["cells"] if cell["configuration"] == configuration]
    if not cells:
        raise SystemExit(f"No configuration is called {configuration!r}: without names all are printed.")
    found = {}
    for cell in cells:
        rows = cell["evaluations"][-1:]
        if varied:
            rows = [row for row in cell.get(varied, ()) if row[varied] == float(value)]
        for row in rows:
            if metric in row["values"]:
                found[cell["seed"]] = row["values"][metric]
    if not found:
        raise SystemExit(f"{name!r} has no {metric}: see `cells` in the file for what it has.")
    return found


def compared(study: Mapping[str, Any], names: Sequence[str], metric: str) -> list[Paired]:
    """The test of the first of each two names against the second; SystemExit where they have no seed in common."""
    tests = []
    for a, b in zip(names[::2], names[1::2], strict=True):
        test = paired(scores(study, a, metric), scores(study, b, metric), study["level"])
        if test is None:
            raise SystemExit(f"{a!r} and {b!r} were not trained with a seed in common.")
        tests.append(test)
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
    rows = zip(names[::2], names[1::2], tests, holm([test.p_t for test in tests]), strict=True)
    for a, b, test, adjusted in rows:
        d = test.difference
        print(f"{a} against {b}: {d.mean:.3g} [{d.low:.3g}, {d.high:.3g}], p = {test.p_t:.2g}, Holm = {adjusted:.2f}, "
              f"{d.count} seeds")  # fmt: skip


if __name__ == "__main__":
    main()
