"""A copy of the project, its YAML edited and snakemake run in it."""

import os
import subprocess
import sys
from pathlib import Path

import yaml


def edit(root: Path, name: str, change) -> None:
    path = root / f"workflow/config/{name}.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def shorten_timings(root: Path) -> None:
    """Let a measurement of speed time each model, and the machine, for a moment only: no test looks at it."""
    changes = [
        ("throughput.py", "TIMING_S = 0.5 ", "TIMING_S = 0.01 "),
        ("throughput.py", "MOST_ROUNDS = 2 ", "MOST_ROUNDS = 1 "),
        ("offtheshelf.py", "TIMING_S = 0.2 ", "TIMING_S = 0.01 "),
        ("roofline.py", 'COPIED_MIB = {"cpu": 512, ', 'COPIED_MIB = {"cpu": 1, '),
        ("roofline.py", 'MATRIX = {"cpu": 2048, ', 'MATRIX = {"cpu": 64, '),
    ]
    for file, line, shorter in changes:
        path = root / "workflow/bench" / file
        code = path.read_text()
        assert f"\n{line}" in code
        path.write_text(code.replace(f"\n{line}", f"\n{shorter}"))


def leave_out_mlflow(root: Path) -> None:
    """Put a program that waits for snakemake's end in the place of the MLflow sync, which imports MLflow for 5 s."""
    (root / "workflow/tracking/__main__.py").write_text("import sys\n\nsys.stdin.read()\n")


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("snakemake")), *arguments]


def environment(root: Path) -> dict:
    """Return the variables of a user's shell in the folder `root`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = {**os.environ, "PATH": path, "PWD": str(root)}
    for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH"):
        found.pop(name, None)
    return found


def snakemake(root: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*arguments), cwd=root, env=environment(root), capture_output=True, text=True,
        timeout=1200, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said
