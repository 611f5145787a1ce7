"""Snakemake on a terminal of 100 columns: a line for each running job and one for the whole."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.integration.project import command, environment, leave_out_mlflow
from workflow.campaign import kinds, specs, targets
from workflow.campaign.config import Config
from workflow.storage import records

pytestmark = pytest.mark.integration
COLUMNS = 100
DATA, TABLE = "results/demo/data.json", "results/demo/table1.csv"
DEMO = ("--profile", "demo")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    copy_project(root)
    leave_out_mlflow(root)
    return root


def on_a_terminal(root: Path, *arguments: str) -> tuple[int, list[str]]:
    """Return how snakemake ends on a terminal, and every line that stood there at some time."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    variables = environment(root) | {"TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(command(*arguments), cwd=root, env=variables, stdin=end, stdout=end, stderr=end)
    os.close(end)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # so Linux says that nobody holds the other end any more
            break
        if not part:
            break
        written += part
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", written.decode())
    lines = [line.strip() for line in re.split(r"[\r\n]|\x1b\[A", text)]
    return process.wait(), [line for line in lines if line]


def test_a_job_and_the_whole_have_a_line_each(project):
    code, lines = on_a_terminal(project, *DEMO, DATA)
    assert code == 0, lines
    assert "1 jobs: 1 prepare_data" in lines
    assert any(re.match(r"0 of 1 jobs \|.*\| \d\d:\d\d$", line) for line in lines)
    assert any(line.startswith("results/demo/data  Attempt 1: local job") for line in lines)
    assert any(line.startswith("results/demo/data: done in ") for line in lines)
    assert any(line.startswith("1 of 1 jobs are done, in ") for line in lines)
    assert not any(line.startswith(("[results/demo", "Finished jobid", "Select jobs", "rule ")) for line in lines)
    drawn = [line for line in lines if line.startswith(("results/demo/data", "0 of 1", "1 of 1"))]
    assert max(map(len, drawn)) <= COLUMNS
    written = (project / "results/demo/data/data.log").read_text()
    assert "Attempt 1: local job" in written  # the log has what the launcher did not print


def test_why_a_job_failed_is_said_with_its_log_at_once_and_again_at_the_end(project):
    needed = targets.needed(Config.load(), TABLE)
    for path, spec in needed.items():
        specs.write_spec(project / kinds.job_folder(path) / "spec.json", spec)
    for path, spec in needed.items():
        records.write_json(project / path, records.make(spec, {}, time.time()))  # no table can be made of it
    code, lines = on_a_terminal(project, *DEMO, TABLE)
    assert code == 1
    log = project / "results/demo/logs/table1.log"
    reason = f"it failed; the last line of its log: {log.read_text().splitlines()[-1]}"
    assert lines.count(f"{TABLE}: {reason}") == 2
    assert f"{TABLE} failed; its log: results/demo/logs/table1.log" in lines
    end = next(number for number, line in enumerate(lines) if line.startswith("0 of 1 jobs are done, in "))
    assert lines[end + 1 : end + 3] == [f"{TABLE}: {reason}", "its log: results/demo/logs/table1.log"]
    assert not any("returned non-zero exit status" in line or "Error in rule" in line for line in lines)
