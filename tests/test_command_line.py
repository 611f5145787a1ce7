"""Every program's help, its end when nobody reads on, and the folder it must be started in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workflow import command_line

REPO = Path(__file__).parent.parent
STATUS = [sys.executable, "-m", "workflow.launch.status", "results/demo/table1.csv"]
PROGRAMS = sorted(
    str(path.relative_to(REPO).with_suffix("")).replace("/", ".")
    for path in (REPO / "workflow").rglob("*.py")
    if "\nif __name__ ==" in path.read_text()
)


def start(command: list[str], folder: Path = REPO, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPO), **options}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip


def test_every_program_ends_in_the_same_way():
    """Each one goes through command_line.run, which ends it quietly."""
    assert len(PROGRAMS) >= 8
    for program in PROGRAMS:
        text = (REPO / program.replace(".", "/")).with_suffix(".py").read_text()
        assert "command_line.run(" in text, program
        assert "__doc__." not in text, program  # None under PYTHONOPTIMIZE=2


@pytest.mark.parametrize("program", ["launch.status", "tracking", "launch.submit"])
def test_help_without_docstrings(program):
    done = start([sys.executable, "-m", f"workflow.{program}", "--help"], PYTHONOPTIMIZE="2")
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
def test_output_that_nobody_reads_ends_a_program_quietly(unbuffered, streams):
    reading, writing = os.pipe()
    os.close(reading)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(STATUS, cwd=REPO, env=environment, check=False,
                          **(options | dict.fromkeys(streams, writing)))  # fmt: skip
    os.close(writing)
    assert done.returncode == command_line.BROKEN_PIPE
    assert not done.stderr


def test_another_broken_pipe_is_an_error():
    def main():
        raise BrokenPipeError("a worker's pipe")

    with pytest.raises(BrokenPipeError):
        command_line.run(main)


def test_ctrl_c_ends_a_program_without_a_traceback():
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert ended.value.code == command_line.INTERRUPTED


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [("launch.status",), ("bench", "import", "measured")])
def test_a_program_started_in_another_folder_names_the_clone(tmp_path, arguments):
    """Else `status` would say there that nothing was started."""
    program, *others = arguments
    done = start([sys.executable, "-m", f"workflow.{program}", *others], tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cd {REPO}" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [("-s", f"{REPO}/Snakefile"), ("-d", "{elsewhere}")])
def test_snakemake_for_another_folder_names_the_clone(tmp_path, options):
    """Else it would train there and say that all is in MLflow."""
    folder = tmp_path if options[0] == "-s" else REPO
    words = [word.format(elsewhere=tmp_path) for word in options]
    snakemake = [sys.executable, "-m", "snakemake", "results/demo/table1.csv", *words]
    done = start([*snakemake, "--profile", f"{REPO}/workflow/profiles/demo"], folder)
    assert done.returncode == 1
    assert f"cd {REPO}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_launcher_whose_terminal_is_gone_goes_on(tmp_path):
    code = (
        "from pathlib import Path; from workflow.launch.progress import Log\n"
        "with Log(Path('x.log'), 'x') as log: [log.say(f'line {number}') for number in range(3)]\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=writing,
                   check=True)  # fmt: skip
    os.close(writing)
    assert (tmp_path / "x.log").read_text().count("line") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mesure", "--rounds", "3"], "argument COMMAND: 'mesure' is unknown; did you mean 'measure'?"),
        (["measure", "--model", "x", "--round-s", "3"], "there is no option --round-s; did you mean '--rounds'?"),
        (["measure", "--mdoel=x"], "there is no option --mdoel; did you mean '--model'?"),  # it is required
        (["measure", "--model", "x", "--mode", "fusd"], "argument --mode: 'fusd' is unknown; did you mean 'fused'?"),
        (["measure", "--model", "x", "--mode", "?"], "argument --mode: '?' is unknown; known are paper, fused."),
    ],
)
def test_a_mistyped_word_of_a_command_line_names_the_nearest(words, said, capsys):
    parser = command_line.parser("A program.", prog="program")
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("measure")
    command.add_argument("--model", required=True)
    command.add_argument("--rounds", type=int)
    command.add_argument("--mode", choices=("paper", "fused"))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {said}")


def test_abbreviated_options_and_words_after_two_dashes_are_taken():
    parser = command_line.parser("A program.")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args(["--round=3", "--", "--modle"])
    assert (arguments.rounds, arguments.words) == (3, ["--modle"])
