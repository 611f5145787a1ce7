"""Who may import what (the layers of the house), and how heavy a launcher is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STDLIB = set(sys.stdlib_module_names)
HEAVY = {"torch", "timm", "mlflow", "pandas", "seaborn", "matplotlib"}
# package or file -> third-party packages and own packages that it may import
ALLOWED = {
    "evovit": {"torch", "timm", "evovit"},
    "evovit/kernels.py": {"torch", "triton"},  # which comes with torch where there are GPUs
    "baselines": {"torch", "timm", "baselines", "evovit"},
    "workflow/campaign.py": {"yaml"},
    "workflow/files.py": set(),
    "workflow/runs.py": {"workflow"},
    "workflow/measurements.py": {"workflow"},
    "workflow/records.py": {"workflow"},
    "workflow/provenance.py": set(),
    "workflow/journal.py": set(),
    "workflow/layout.py": set(),
    "workflow/statements.py": {"workflow"},
    "workflow/points.py": set(),
    "workflow/locks.py": {"workflow"},
    "workflow/command_line.py": set(),
    "workflow/shell.py": set(),
    "workflow/loaders.py": set(),
    "workflow/login": {"workflow", "snakemake", "jsonschema", "psutil"},
    "workflow/login/jobs.py": {"workflow", "submitit"},
    "workflow/login/handover.py": {"workflow", "submitit"},
    "workflow/login/fetch.py": {"workflow", "huggingface_hub"},
    "workflow/login/tracking.py": {"workflow", "mlflow"},
    "workflow/node": {
        *("workflow", "evovit", "baselines", "torch", "torchvision", "timm", "numpy", "PIL"),
        *("sklearn", "psutil"),
    },
    "workflow/node/sources.py": {"workflow", "timm", "PIL", "datasets"},
    "workflow/node/interpretability.py": {"workflow", "torch", "timm", "captum"},
    "workflow/paper": {"workflow", "numpy", "pandas", "seaborn", "matplotlib"},
    "workflow/paper/found.py": {"scipy"},
    "workflow/paper/sheet.py": {"workflow", "pandas", "tabulate"},
}


def files() -> list[str]:
    found = [
        path for name in ("evovit", "baselines", "workflow") for path in (ROOT / name).rglob("*.py")
    ]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def imported(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else node.module)
    return names


@pytest.mark.parametrize("path", files())
def test_imports_stay_within_their_layer(path):
    rule = max((prefix for prefix in ALLOWED if path.startswith(prefix)), key=len, default=None)
    if rule is None:
        assert path == "workflow/__init__.py"
        return
    tops = {name.partition(".")[0] for name in imported(path)} - STDLIB
    if rule in ("evovit", "baselines"):
        tops -= {""}  # relative imports stay within the package
    assert tops <= ALLOWED[rule], f"{path} imports {sorted(tops - ALLOWED[rule])}"


@pytest.mark.parametrize("layer", ["login", "node", "paper"])
def test_layers_do_not_import_each_other(layer):
    others = {"login", "node", "paper"} - {layer}
    for path in files():
        if path.startswith(f"workflow/{layer}/"):
            found = {
                name for name in imported(path) for other in others if f"workflow.{other}" in name
            }
            assert not found, f"{path} imports {sorted(found)}"


def test_the_launcher_is_light():
    """Under 40 MB resident, with no heavy package; submitit is its short-lived child's."""
    code = (
        "import sys, workflow.login.submit\n"
        "from pathlib import Path\n"
        f"print(sorted({HEAVY | {'submitit', 'snakemake', 'numpy'}!r} & sys.modules.keys()))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(status.partition('VmRSS:')[2].split()[0]) // 1024)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded, megabytes = shown.stdout.splitlines()
    assert loaded == "[]"
    assert int(megabytes) < 40
