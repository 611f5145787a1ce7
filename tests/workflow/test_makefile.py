"""The Makefile in a clone that was moved, whose path has a space, or whose user has no home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone whose environment looks set up."""
    clone = tmp_path / "first clone"
    clone.mkdir()
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(REPO / name, clone)
    command = [sys.executable, "-m", "venv", "--without-pip", ".venv"]
    subprocess.run(command, cwd=clone, check=True)
    (clone / ".venv/.requirements.lock").touch()
    (clone / ".venv/.device").touch()
    return clone


def would_do(clone: Path, target: str, **variables) -> str:
    """What make would run, without running it."""
    environment = {**os.environ, "HOME": str(clone), **variables}
    done = subprocess.run(["make", "--dry-run", target], cwd=clone, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout


def test_where_it_was_set_up_nothing_is_set_up_again(clone):
    assert "Nothing to be done" in would_do(clone, "setup")
    assert f'PATH="{clone}/.venv/bin:$PATH" snakemake' in would_do(clone, "demo")


@pytest.mark.parametrize("way", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_clone_sets_up_its_environment_anew(clone, way):
    """Its scripts name the old folder: `snakemake: not found`."""
    new = clone.with_name("second")
    way(clone, new)
    for target in ("setup", "demo", "ui"):
        steps = would_do(new, target)
        assert "was set up in another folder" in steps
        assert "-m venv --clear .venv" in steps


def test_another_name_of_the_same_folder_is_no_move(clone):
    link = clone.with_name("link")
    link.symlink_to(clone)
    assert "Nothing to be done" in would_do(link, "setup", VENV=f"{link}/.venv")


@pytest.mark.parametrize("home", ["", "/missing"])
def test_a_user_without_a_home_gets_one(clone, home):
    (clone / "more.mk").write_text("include Makefile\nshow:\n\t@echo $$HOME\n")
    environment = {**os.environ, "HOME": home}
    command = ["make", "--no-print-directory", "-f", "more.mk", "show"]
    done = subprocess.run(command, cwd=clone, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == f"{clone}/.venv/home"


def make(*words: str, folder: Path) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_make_lists_the_targets(clone):
    """A line for each, but for the parts of `test-whole`, and none that a terminal breaks."""
    listed = make(folder=clone).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines() if line.startswith("make ")]
    targets = {"help", "setup", "demo", "demo-full", "test", "test-unit", "test-whole", "ui", "lint", "docs", "locks"}
    assert {target for _, target, _ in lines} == targets
    assert max(map(len, listed.splitlines())) <= 100
    assert make("help", folder=clone).stdout == listed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo-ful"], "make: no demo-ful here; did you mean demo-full?"),
        (["xyz"], "make: no xyz here; make lists the targets."),
        (["setup", "LOCK=requirement.lock"], "make: no requirement.lock here; did you mean requirements.lock?"),
    ],
)
def test_a_mistyped_target_or_lock_names_the_nearest(clone, words, said):
    done = make(*words, folder=clone)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == said


def test_files_without_a_rule_are_not_refused(clone):
    done = make("--always-make", "--dry-run", "setup", folder=clone)
    assert done.returncode == 0, done.stderr
