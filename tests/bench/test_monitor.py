"""What else happened on the device: a GPU through a false nvidia-smi, this CPU as it is."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from workflow.bench import monitor
from workflow.bench.monitor import Gpu, Monitor, Sample

SMI = """#!{python}
import sys
known = {known!r}
query = next(a for a in sys.argv if a.startswith("--query")).partition("=")[2]
assert any(a == "--id=GPU-1" for a in sys.argv), sys.argv
if any(field not in known for field in query.split(",")):
    sys.exit("Field is not a valid field to query.")
print(", ".join(known[field] for field in query.split(",")))
"""
KNOWN = {
    "clocks.sm": "1380", "power.draw": "250.5", "temperature.gpu": "61", "pid": "17",
    "clocks_throttle_reasons.active": "0x0000000000000000", "driver_version": "535.1",
    "clocks.max.sm": "1530", "clocks.max.memory": "877", "power.limit": "300.0",
}  # fmt: skip
H100 = (9, 0)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A function: from now on nvidia-smi answers with these values."""

    def answer(**values) -> None:
        known = KNOWN | {key.replace("__", "."): value for key, value in values.items()}
        path = tmp_path / "bin/nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SMI.format(python=sys.executable, known=known))
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    answer()
    return answer


def test_a_gpu_tells_clock_power_heat_and_driver(smi):
    gpu = Gpu("1", H100)
    assert gpu.facts() == {
        "driver": "535.1", "clock_limit_mhz": 1530.0, "memory_clock_limit_mhz": 877.0,
        "power_limit_w": 300.0, "other_processes": 0,
    }  # fmt: skip
    sample = gpu.sample()
    assert (sample.clock_mhz, sample.power_w, sample.temperature_c) == (1380.0, 250.5, 61.0)
    assert sample.throttled == ()


def test_newer_drivers_call_the_reasons_by_another_name(smi):
    smi(clocks_event_reasons__active="0x0000000000000020")
    assert Gpu("GPU-1", H100).sample().throttled == ("heat",)


def test_another_process_on_the_gpu_is_counted(smi):
    smi(pid="17\n18\n19")
    assert Gpu("GPU-1", H100).facts()["other_processes"] == 2


def test_what_a_gpu_does_not_tell_is_none(smi):
    smi(power__draw="[N/A]")
    assert Gpu("GPU-1", H100).sample().power_w is None


def test_without_nvidia_smi_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu = Gpu("GPU-1", H100)
    assert gpu.sample() is None
    assert gpu.facts()["driver"] is None
    assert gpu.facts()["other_processes"] is None


def test_reasons_that_are_no_slowing_do_not_count():
    assert monitor.throttle_reasons("0x0000000000000001") == ()  # idle
    assert monitor.throttle_reasons("0x0000000000000044") == ("power cap", "heat, by hardware")


class Silent:
    """A device without samples, which tells one of `facts` after the other."""

    def __init__(self, *facts: dict):
        self.answers = iter(facts)

    def facts(self) -> dict:
        return next(self.answers, {})

    def sample(self) -> None:
        return None


def summary_of(samples, **facts) -> dict:
    watch = Monitor(Silent(facts, facts))
    with watch:
        watch.samples = samples
    return watch.summary([(0, 10)]) | {"cpu_taken_by_others": 0.0}


def test_a_driver_that_hangs_does_not_hold_the_measurement(monkeypatch):
    monkeypatch.setattr(monitor, "PATIENCE_S", 0.05)
    hanging = threading.Event()
    device = Silent({"driver": "1"})
    device.sample = hanging.wait
    with Monitor(device) as watch:
        device.facts = None  # would fail
    assert watch.samples == []
    hanging.set()


def test_only_samples_from_timed_moments_count():
    samples = [Sample(1, clock_mhz=100, power_w=10), Sample(2, clock_mhz=101, power_w=20)]
    samples.append(Sample(99, clock_mhz=5000, power_w=1))
    summary = summary_of(samples)
    assert summary["samples"] == 2
    assert summary["clock_mhz"] == {"least": 100, "median": 100.5, "most": 101}
    watch = Monitor(Silent())
    watch.samples = samples
    assert watch.power_w([(0, 10)]) == 15
    assert watch.power_w([(3, 4)]) is None


def test_a_power_that_is_a_mean_over_another_models_time_does_not_count():
    watch = Monitor(Silent())
    watch.samples = [Sample(2.0, power_w=30, power_over_s=1), Sample(3.0, power_w=20, power_over_s=1)]
    assert watch.power_w([(1.5, 3.5)]) == 20
    watch.samples = [Sample(3.0, power_w=20, power_over_s=1)]
    assert watch.power_w([(1.5, 2.2), (2.8, 3.5)]) is None  # another model was timed in between


def test_a_process_that_comes_while_models_are_timed_is_counted():
    with Monitor(Silent({"other_processes": 0}, {"other_processes": 1})) as watch:
        pass
    assert watch.facts["other_processes"] == 1


def test_power_of_this_moment_is_preferred(smi):
    assert 1 < Gpu("GPU-1", H100).sample().power_over_s < 2
    for older in ((7, 0), (8, 0)):  # whose power.draw is of this moment
        assert Gpu("GPU-1", older).sample().power_over_s < 1
    smi(power__draw__instant="240.0")
    sample = Gpu("GPU-1", H100).sample()
    assert sample.power_w == 240.0
    assert sample.power_over_s < 1  # the time of asking alone


@pytest.mark.parametrize(
    ("samples", "fixed", "warning"),
    [
        ([Sample(1, 1500), Sample(2, 1500)], {"other_processes": 0}, None),
        ([Sample(1, 1500)], {"other_processes": 1}, ("other_processes", "1 other process(es) on the GPU")),
        ([Sample(1, 1500, throttled=("heat",))], {}, ("throttled", "throttled (heat) in 100 % of the time")),
        ([Sample(1, 1500), Sample(2, 1200)], {}, None),  # the record holds how the clock went
        ([], {}, None),  # the record says that there are no samples
    ],
)
def test_somebody_else_and_a_throttled_clock_bring_warnings(samples, fixed, warning):
    assert monitor.find_warnings(summary_of(samples, **fixed), CUDA) == [warning] * bool(warning)


def test_others_on_the_processors_are_noticed():
    """A busy neighbour on this process's only processor."""
    allowed = os.sched_getaffinity(0)
    busy = [sys.executable, "-c", "while True: pass"]
    os.sched_setaffinity(0, {min(allowed)})
    neighbour = subprocess.Popen(busy)
    try:
        with monitor.start_monitor(CPU) as watch:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                pass
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, allowed)
    summary = watch.summary(())
    assert summary["cpu_taken_by_others"] > 0.2
    (warning,) = monitor.find_warnings(summary, CPU)
    assert warning.code == "other_processes"
    assert warning.text.startswith("others took ")


def test_without_psutil_others_are_unknown(monkeypatch):
    """On a bare machine with torch and timm alone."""
    monkeypatch.setattr(monitor, "psutil", None)
    with Monitor(Silent()) as watch:
        pass
    summary = watch.summary([(0, 10)])
    assert summary["cpu_taken_by_others"] is None
    assert monitor.find_warnings(summary, CPU) == []
    assert monitor.processors() == os.sched_getaffinity(0)
