"""timm's own tests/test_models.py, of the version installed here, run over our models."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

from tests.models.families import FAMILIES

HERE = Path(__file__).parent
SHARES = 3  # of the families: as one test it kept one worker busy after the other had ended


def fetch_source(folder: Path) -> Path:
    """Download timm's source distribution by pip; skip the test where that fails."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--retries", "1", "--timeout", "15", "--no-deps", "--no-binary", "timm",
        "--dest", str(folder), f"timm=={timm.__version__}",
    ]  # fmt: skip
    try:
        pip = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        pytest.skip("timm's source distribution was not there after 3 minutes")
    archives = list(folder.glob("timm-*.tar.gz"))
    if pip.returncode or not archives:
        reason = (pip.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
        pytest.skip(f"timm {timm.__version__} can't be fetched as a source distribution: {reason}")
    return archives[0]


@pytest.fixture(scope="session")
def upstream(tmp_path_factory) -> Path:
    """A folder with timm's tests and the conftest.py that shows them this project's models."""
    folder = tmp_path_factory.mktemp("upstream")
    archive = fetch_source(folder)
    with tarfile.open(archive) as sources:
        name = f"timm-{timm.__version__}/tests/test_models.py"
        if name not in sources.getnames():
            pytest.skip(f"{archive.name} holds no tests/test_models.py")
        (folder / "test_models.py").write_bytes(sources.extractfile(name).read())
    shutil.copy(HERE / "upstream_conftest.py", folder / "conftest.py")
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("share", range(SHARES))
def test_timms_own_model_tests(share, upstream):
    examples = [family.example for family in FAMILIES.values()][share::SHARES]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "test_models.py", "-k", " or ".join(examples), "--rootdir", str(upstream),
         "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:warnings", "-q", "--tb=short"],
        cwd=upstream, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert int(passed[1]) > 4 * len(examples)  # each family runs at least this number of timm's tests
