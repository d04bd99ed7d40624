"""Ask pip-audit for known vulnerabilities of what the lock files name: `python scripts/audit.py`.

Ends with status 1 when there is one. Where no service answers, it says so, and that nothing was checked, with status 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError", "HTTPError", "SSLError")


def verdict(stdout: str, stderr: str) -> tuple[int, str]:
    """Exit status and what to say, of pip-audit's JSON on stdout, or of what it died of."""
    if not stdout.strip():
        if any(name in stderr for name in UNREACHABLE):
            return 0, "audit: no vulnerability service can be reached from here; nothing was checked."
        return 1, f"audit: pip-audit failed:\n{stderr}"
    packages = json.loads(stdout)["dependencies"]
    checked = [package for package in packages if "vulns" in package]
    if not checked:
        return 0, "audit: the index knows of no vulnerability data; nothing was checked."
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or '-'}"
        for package in checked
        for found in package["vulns"]
    ]
    skipped = [package["name"] for package in packages if "vulns" not in package]
    summary = f"audit: {len(checked)} packages checked, {len(lines)} known vulnerabilities"
    summary += f", not checked: {', '.join(skipped)}" if skipped else ""
    return int(bool(lines)), "\n".join([*lines, summary])


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--timeout", "15"]
    for lock in LOCKS:
        command += ["--requirement", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    status, text = verdict(done.stdout, done.stderr)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
