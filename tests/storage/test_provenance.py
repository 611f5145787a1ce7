"""Which code ran: this clone's commit and no other's, noted when it is imported, or why unknown."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from workflow.storage import provenance, records
from workflow.tracking import runs

NOBODY = 65534
FILES = {"evovit/tokens.py": "a = 1\n", "workflow/train/trainer.py": "", "README.md": "text\n"}


def git(folder: Path, *arguments: str) -> str:
    """As a user would call it in that folder, with no variable of the test's shell."""
    environment = {key: text for key, text in os.environ.items() if not key.startswith("GIT_")}
    named = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main",
             "-c", "protocol.file.allow=always")  # fmt: skip
    done = subprocess.run(["git", *named, *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()


def write(folder: Path, files: dict[str, str] = FILES) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def commit(folder: Path, files: dict[str, str] = FILES) -> str:
    write(folder, files)
    git(folder, "add", "--all")
    git(folder, "commit", "--message", "A change")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init")
    commit(folder)
    return folder


def test_a_clone_is_known_by_its_commit_and_what_differs_from_it(clone):
    head = git(clone, "rev-parse", "HEAD")
    clean = {"commit": head, "dirty": False, "reason": None}
    assert provenance.checkout(clone) == clean
    (clone / "notes.txt").write_text("no code")
    assert provenance.checkout(clone) == clean
    (clone / "evovit/new.py").write_text("")  # imported, though git does not track it
    assert provenance.checkout(clone)["dirty"]
    (clone / "evovit/new.py").unlink()
    sources = provenance.source_hash(clone)
    (clone / "evovit/.#tokens.py").symlink_to("user@host.1234")  # Emacs's, while a file is edited
    assert provenance.checkout(clone) == clean
    assert provenance.source_hash(clone) == sources
    (clone / "evovit/tokens.py").write_text("a = 2\n")
    assert provenance.checkout(clone) == clean | {"dirty": True}


@pytest.mark.parametrize("kind", ["worktree", "submodule", "shallow"])
def test_other_kinds_of_clones_are_known_too(clone, tmp_path, kind):
    folder, head = tmp_path / "other", git(clone, "rev-parse", "HEAD")
    if kind == "worktree":
        git(clone, "worktree", "add", "--detach", str(folder))
    elif kind == "shallow":
        git(tmp_path, "clone", "--depth", "1", clone.as_uri(), str(folder))
    else:
        folder.mkdir()
        git(folder, "init")
        git(folder, "submodule", "add", str(clone), "code")
        folder = folder / "code"
    assert provenance.checkout(folder) == {"commit": head, "dirty": False, "reason": None}


def test_the_shells_variables_name_no_other_repository(clone, tmp_path, monkeypatch):
    head, other = git(clone, "rev-parse", "HEAD"), tmp_path / "other"
    other.mkdir()
    git(other, "init")
    assert commit(other, {"a.txt": "a"}) != head
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert provenance.checkout(clone) == {"commit": head, "dirty": False, "reason": None}
    bare = tmp_path / "copy"
    write(bare)
    assert provenance.checkout(bare)["commit"] is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (None, "no git clone, but a copy or an installed package"),
        (lambda copy: (copy / ".git").mkdir(), "not the top of its git clone"),
        (lambda copy: (copy / ".git").write_text("gitdir: nowhere"), "git fails: not a git repo"),
        (lambda copy: git(copy, "init"), "git fails: ambiguous argument 'HEAD'"),
    ],
)
def test_a_copy_below_somebodys_repository_has_no_commit(clone, damage, reason):
    copy = clone / "downloads/code"
    write(copy)
    if damage:
        damage(copy)
    found = provenance.checkout(copy)
    assert (found["commit"], found["dirty"]) == (None, None)
    assert reason in found["reason"]


def test_without_git_the_reason_is_said(clone, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git is not installed" in provenance.checkout(clone)["reason"]


def asked_as(uid: int, clone: Path) -> dict:
    """What a process of that user finds."""
    reading, writing = os.pipe()
    if not os.fork():
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writing, json.dumps(provenance.checkout(clone)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        return json.loads(answer.read())


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user, as root alone may")
@pytest.mark.parametrize(("owner", "reader"), [(0, NOBODY), (1000, 0), (1000, NOBODY)])
def test_a_clone_of_another_user_is_known_and_left_as_it_is(clone, owner, reader):
    """The second user of a shared clone, and root in a container."""
    head = git(clone, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o755)
        shared_clone = Path(shared, "clone")
        shutil.copytree(clone, shared_clone)  # with new times, so that git would refresh its index
        for path in (shared_clone, *shared_clone.rglob("*")):
            os.chown(path, owner, owner)
        index = (shared_clone / ".git/index").stat()
        assert asked_as(reader, shared_clone) == {"commit": head, "dirty": False, "reason": None}
        after = (shared_clone / ".git/index").stat()
        assert (after.st_mtime_ns, after.st_uid) == (index.st_mtime_ns, owner)
        if reader == NOBODY:
            (shared_clone / ".git").chmod(0o700)
            assert "may not read" in asked_as(reader, shared_clone)["reason"]


def test_sources_are_the_same_code_whatever_the_documents_say(clone):
    before = provenance.source_hash(clone)
    write(clone, {"README.md": "more", "workflow/paper/tables.py": "", "docs/a.md": ""})
    assert provenance.source_hash(clone) == before
    hashes = {before}
    for name in ("evovit/tokens.py", "baselines/deit.py", "workflow/campaign/specs.py",
                 "workflow/train/trainer.py", "workflow/runtime/job.py"):  # fmt: skip
        write(clone, {name: "changed = True\n"})
        hashes.add(provenance.source_hash(clone))
    assert len(hashes) == 6


def test_a_commit_after_the_import_is_not_what_ran(tmp_path):
    """Of a process that imports a package that computes, then works while somebody commits."""
    for name in ("workflow/__init__.py", "workflow/command_line.py", "workflow/train/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(records.ROOT / name, tmp_path / name)
    for package in ("campaign", "storage", "data"):
        shutil.copytree(records.ROOT / "workflow" / package, tmp_path / "workflow" / package)
    git(tmp_path, "init")
    head = commit(tmp_path, {".gitignore": "__pycache__\n"})
    code = (
        "import json, pathlib, subprocess, sys\n"
        "import workflow.train\n"
        "pathlib.Path('workflow/train/new.py').write_text('')\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "from workflow.storage import records\n"
        "print(json.dumps(records.make({'kind': 'data'}, {}, 0.0)['provenance']))\n"
    )
    committing = "git add --all && git -c user.name=A -c user.email=a@b.c commit -m B"
    shown = subprocess.run([sys.executable, "-c", code, "sh", "-c", committing], cwd=tmp_path,
                           capture_output=True, text=True, check=True)  # fmt: skip
    known = json.loads(shown.stdout)
    assert git(tmp_path, "rev-parse", "HEAD") != head
    assert (known["commit"], known["dirty"], known["reason"]) == (head, False, None)
    assert [version["commit"] for version in known["code"]] == [head]


# -- several versions ----------------------------------------------------------------------------

OLD = {"commit": "a" * 40, "dirty": False, "reason": None, "source_hash": "1" * 16,
       "versions": {"torch": "2.7.1", "timm": "1.0.31"}}  # fmt: skip
NEW = OLD | {"commit": "b" * 40, "dirty": True, "source_hash": "2" * 16}
UNKNOWN = OLD | {"commit": None, "dirty": None, "reason": "git is not installed where it ran"}


def record_of(*code: dict) -> dict:
    spec = {"kind": "train", "run": "evo_deit_tiny"}
    return records.make(spec, {"top1": 1.0}, 0.0, list(code), device="cpu")


@pytest.mark.parametrize(
    ("code", "commit", "dirty", "flag"),
    [
        ([OLD], OLD["commit"], False, None),
        ([OLD, OLD | {"commit": "c" * 40, "from_epoch": 1}], "c" * 40, False, None),
        ([OLD, NEW | {"from_epoch": 2, "from_step": 3}], "mixed", True,
         "evo_deit_tiny was made by several versions of the code: from epoch 1 on "
         "commit aaaaaaaaaa (source 11111111); from epoch 3, step 4 on commit bbbbbbbbbb (with "
         "uncommitted changes, source 22222222)"),
        ([OLD, OLD | {"versions": {"torch": "2.8.0", "timm": "1.0.31"}, "from_layer": 4}], "mixed",
         False, "evo_deit_tiny was made by several versions of the code: from epoch 1 on "
         "commit aaaaaaaaaa (source 11111111, torch 2.7.1); from the search's layer 5 on "
         "commit aaaaaaaaaa (source 11111111, torch 2.8.0)"),
        ([UNKNOWN], None, None, "unknown commit: git is not installed where it ran"),
        ([UNKNOWN | {"source_hash": "2" * 16}, OLD], "mixed", None,
         "an unknown commit (git is not installed where it ran"),
    ],
)  # fmt: skip
def test_record_mlflow_and_table_name_every_version(code, commit, dirty, flag):
    record = record_of(*code)
    known = record["provenance"]
    assert (known["commit"], known["dirty"], known["code"]) == (commit, dirty, code)
    flags = provenance.flags(record)
    assert len(flags) == (flag is not None)
    assert flag is None or flag in flags[0]
    tags, note = runs.provenance_tags(record), runs.describe_code(known)
    assert tags["commit"] == (commit or "unknown")
    assert tags["dirty"] == ("unknown" if dirty is None else str(dirty))
    if commit is None:
        assert tags["commit_reason"] in flag
        assert tags["commit_reason"] in note
    elif flag:
        assert tags["code"] in flags[0]
        assert tags["code"] == note
    else:
        assert commit[:10] in note


def test_a_record_of_before_says_that_it_does_not_know():
    record = record_of(OLD)
    for key in ("code", "reason"):
        del record["provenance"][key]
    assert provenance.flags(record) == []
    assert "commit aaaaaaaaaa" in runs.describe_code(record["provenance"])
    record["provenance"] |= {"commit": None, "dirty": None}
    assert "made before code versions were noted" in provenance.flags(record)[0]
    assert runs.provenance_tags(record)["commit"] == "unknown"


def test_ranks_of_different_code_are_refused():
    provenance.check_ranks([OLD, UNKNOWN])  # the same sources: a node without git
    with pytest.raises(provenance.CodeError, match=r"Rank 1 runs commit bbbb.*rank 0 runs commit a"):
        provenance.check_ranks([OLD, NEW])
