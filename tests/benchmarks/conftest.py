"""What a bare machine has."""

import os

import pytest

# what a machine with torch and timm lacks
ABSENT = ("snakemake", "mlflow", "submitit", "seaborn", "matplotlib", "sklearn", "scipy", "pandas", "jsonschema",
          "captum", "datasets", "tabulate", "psutil")  # fmt: skip


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of commands whose processes, all of them, can import no more than a bare machine's."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "bare"), "OMP_NUM_THREADS": "1"}
