"""Models, tasks and the workflow agree on what a method may define: baselines/protocol.py."""

import ast
import difflib
import inspect
from pathlib import Path

import pytest
import timm
from timm.task import TrainingTask

from baselines import protocol
from evovit.task import TASKS
from tests.models import families

ROOT = Path(__file__).parents[2]
PACKAGES = ("train", "bench", "analysis")  # of the workflow: those that handle models
TRAINING_TASKS = [name for name, cls in TASKS.items() if issubclass(cls, TrainingTask)]
SEARCHES = sorted(set(TASKS) - set(TRAINING_TASKS))


def hooks(kind: type) -> set[str]:
    """Return the names that a protocol lists."""
    return {name for name in {*vars(kind), *kind.__annotations__} if not name.startswith("_")}


MODEL_HOOKS, TASK_HOOKS, SEARCH_HOOKS = map(hooks, (protocol.ModelHooks, protocol.TaskHooks, protocol.SearchHooks))


def own_names(cls: type) -> set[str]:
    """Return the public names that this project's classes define and timm's and torch's do not."""
    own, theirs = set(), set()
    for base in cls.__mro__:
        ours = base.__module__.startswith(("evovit", "baselines"))
        (own if ours else theirs).update(name for name in vars(base) if not name.startswith("_"))
    return own - theirs


def asked_of(*variables: str) -> set[str]:
    """Return the attributes that the workflow reads of variables of these names, and asks for by getattr and hasattr.

    A ``module`` is often a layer, so of modules only the latter count.
    """
    names = set()
    for path in (path for package in PACKAGES for path in (ROOT / "workflow" / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and variable(node.value) in set(variables) - {"module"}:
                names.add(node.attr)
            asks = isinstance(node, ast.Call) and variable(node.func) in ("getattr", "hasattr")
            if asks and variable(node.args[0]) in variables and isinstance(node.args[1], ast.Constant):
                names.add(node.args[1].value)
    return names


def variable(node: ast.expr) -> str | None:
    """Return x of the expressions x and self.x."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def check(cls: type, kind: type) -> None:
    """Check that the hooks that a class defines are those of the protocol, and that no name is nearly one."""
    names = hooks(kind)
    for name in own_names(cls) - names:
        assert not difflib.get_close_matches(name, names, cutoff=0.85), f"{cls.__name__}.{name}: is a hook meant?"
    for name in names & own_names(cls):
        expected, defined = vars(kind).get(name), getattr(cls, name)
        assert inspect.isfunction(expected) == callable(defined), f"{cls.__name__}.{name}"
        if callable(defined):
            assert parameters(defined) == parameters(expected), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("key", families.FAMILIES)
def test_the_hooks_of_a_model(key):
    cls = type(families.build(key))
    check(cls, protocol.ModelHooks)
    assert asked_of("model", "module") & own_names(cls) <= MODEL_HOOKS


@pytest.mark.parametrize("name", TRAINING_TASKS)
def test_the_hooks_of_a_task(name):
    check(TASKS[name], protocol.TaskHooks)
    assert asked_of("task") & own_names(TASKS[name]) <= TASK_HOOKS


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_has_all_that_is_asked_of_it(name):
    check(TASKS[name], protocol.SearchHooks)
    assert set(protocol.SearchHooks.__annotations__) == {"model", "images", "layers"}  # of instances
    assert hooks(protocol.SearchHooks) - set(protocol.SearchHooks.__annotations__) <= own_names(TASKS[name])


def test_the_workflow_asks_for_every_hook():
    asked = asked_of("model", "module") | {"observe"}  # for which evovit.trace asks
    assert asked >= MODEL_HOOKS
    assert asked_of("task") >= TASK_HOOKS
    assert asked_of("search") == SEARCH_HOOKS


def test_some_method_defines_every_hook():
    models = {name for key in families.FAMILIES for name in own_names(type(families.build(key)))}
    tasks = {name for task in TRAINING_TASKS for name in own_names(TASKS[task])}
    assert models >= MODEL_HOOKS
    assert tasks >= TASK_HOOKS


def test_every_registered_model_is_tested_by_its_family():
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    own = {name for name, module in modules.items() if module.startswith(("evovit.", "baselines."))}
    assert own == set(families.NAMES)
