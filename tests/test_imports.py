"""Who may import what (the layers of the house), and how heavy a launcher is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STDLIB = set(sys.stdlib_module_names)
HEAVY = {"torch", "timm", "mlflow", "pandas", "seaborn", "matplotlib"}
# package or file -> third-party packages that it may import; the longest prefix counts
LIBRARIES = {
    "evovit": {"torch", "timm"},
    "evovit/__main__.py": {"torch", "timm", "PIL", "tqdm"},  # timm brings PIL and tqdm
    "evovit/fast/kernels.py": {"torch", "triton"},  # which comes with torch where there are GPUs
    "baselines": {"torch", "timm"},
    "workflow": set(),
    "workflow/campaign": {"yaml", "jsonschema", "snakemake"},
    "workflow/launch": {"snakemake", "psutil"},
    "workflow/launch/display.py": {"tqdm"},
    "workflow/launch/submit.py": {"submitit", "psutil"},
    "workflow/launch/fetch_weights.py": {"huggingface_hub"},
    "workflow/tracking/sync.py": {"mlflow"},
    "workflow/runtime": {"torch"},
    "workflow/runtime/job.py": {"submitit"},
    "workflow/data": {"torch", "timm", "numpy", "PIL", "sklearn", "datasets"},
    "workflow/data/layout.py": set(),
    "workflow/train": {"torch", "timm", "numpy"},
    "workflow/bench": {"torch", "timm", "numpy", "psutil", "yaml"},
    "workflow/bench/latency.py": {"torch", "onnxruntime"},
    "workflow/analysis": {"torch", "timm", "numpy", "PIL", "sklearn"},
    "workflow/analysis/hooks.py": {"torch", "timm", "captum"},
    "workflow/analysis/probe.py": {"torch", "timm", "numpy", "sklearn", "tabulate", "tqdm"},  # a command line
    "workflow/paper": {"numpy", "pandas", "seaborn", "matplotlib", "scipy", "tabulate"},
}
# package -> own packages that it may import
OWN = {
    "evovit": set(),
    "baselines": {"evovit"},
    "workflow.campaign": {"workflow.storage"},
    "workflow.storage": {"workflow.campaign"},
    "workflow.launch": {"workflow.campaign", "workflow.storage", "workflow.tracking"},
    "workflow.tracking": {"workflow.campaign", "workflow.storage", "workflow.launch"},
    "workflow.paper": {"workflow.campaign", "workflow.storage"},
    "workflow.runtime": {"workflow.storage"},
    "workflow.data": {"workflow.storage", "workflow.runtime"},
    "workflow.train": {
        *("workflow.campaign", "workflow.storage", "workflow.runtime", "workflow.data", "evovit", "baselines"),
    },
    "workflow.bench": {
        *("workflow.campaign", "workflow.storage", "workflow.runtime", "workflow.data", "workflow.train"),
    },
    "workflow.analysis": {
        *("workflow.campaign", "workflow.storage", "workflow.runtime", "workflow.data", "workflow.train"),
        *("evovit", "baselines"),
    },
}
# modules that every package of the workflow may import
SHARED = {"workflow.command_line", "workflow.job_environment"}
# file -> modules that it may import besides
BESIDES = {
    "workflow/campaign/specs.py": {"workflow.data.layout"},  # standard library only
    "workflow/launch/startup.py": {"workflow.data.layout"},
    "workflow/launch/submit.py": {"workflow.data.layout", "workflow.runtime.job"},
    "workflow/paper/missing.py": {"workflow.launch.forecast"},
    "workflow/runtime/job.py": {"workflow.campaign.kinds", "workflow.data.worker_processes"},
}


def files() -> list[str]:
    paths = [path for name in ("evovit", "baselines", "workflow") for path in (ROOT / name).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def imported(path: str) -> set[str]:
    """Return the full names of all that the file imports, with `from a import b` as a.b."""
    tree = ast.parse((ROOT / path).read_text())
    package = path.removesuffix(".py").replace("/", ".").rpartition(".")[0]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module if not node.level else ".".join(filter(None, (package, node.module)))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_own(name: str) -> bool:
    return name.partition(".")[0] in ("evovit", "baselines", "workflow")


def package_of(name: str) -> str:
    """Return the package whose border counts: evovit, baselines or one of the workflow's."""
    return ".".join(name.split(".")[: 2 if name.startswith("workflow.") else 1])


@pytest.mark.parametrize("path", files())
def test_a_file_imports_only_what_its_package_may(path):
    rule = max((prefix for prefix in LIBRARIES if path.startswith(prefix)), key=len)
    libraries = {name.partition(".")[0] for name in imported(path) if not is_own(name)} - STDLIB
    assert libraries <= LIBRARIES[rule], f"{path} imports {sorted(libraries - LIBRARIES[rule])}"

    package = package_of(path.removesuffix(".py").replace("/", "."))
    allowed = {package} | OWN.get(package, set())
    for name in filter(is_own, imported(path)):
        module = next((m for m in SHARED | BESIDES.get(path, set()) if name == m or name.startswith(m + ".")), None)
        assert module or package_of(name) in allowed, f"{path} imports {name}"


def test_the_launcher_is_light():
    """Under 40 MB resident, with no heavy package; submitit is its short-lived child's."""
    code = (
        "import sys, workflow.launch.submit\n"
        "from pathlib import Path\n"
        f"print(sorted({HEAVY | {'submitit', 'snakemake', 'numpy'}!r} & sys.modules.keys()))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(status.partition('VmRSS:')[2].split()[0]) // 1024)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, megabytes = shown.stdout.splitlines()
    assert loaded == "[]"
    assert int(megabytes) < 40
