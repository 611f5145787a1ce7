"""What else happened on the device: a GPU through a false nvidia-smi, this CPU as it is."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from workflow.bench import nvidia, sensors, watch
from workflow.bench.sensors import Sample

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
    gpu = nvidia.Gpu("1", H100)
    assert gpu.fixed() == {
        "driver": "535.1", "clock_limit_mhz": 1530.0, "memory_clock_limit_mhz": 877.0,
        "power_limit_w": 300.0, "other_processes": 0,
    }  # fmt: skip
    seen = gpu.look()
    assert (seen.clock_mhz, seen.power_w, seen.temperature_c) == (1380.0, 250.5, 61.0)
    assert seen.throttled == ()


def test_newer_drivers_call_the_reasons_by_another_name(smi):
    smi(clocks_event_reasons__active="0x0000000000000020")
    assert nvidia.Gpu("GPU-1", H100).look().throttled == ("heat",)


def test_another_process_on_the_gpu_is_counted(smi):
    smi(pid="17\n18\n19")
    assert nvidia.Gpu("GPU-1", H100).fixed()["other_processes"] == 2


def test_what_a_gpu_does_not_tell_is_none(smi):
    smi(power__draw="[N/A]")
    assert nvidia.Gpu("GPU-1", H100).look().power_w is None


def test_without_nvidia_smi_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu = nvidia.Gpu("GPU-1", H100)
    assert gpu.look() is None
    assert gpu.fixed()["driver"] is None
    assert gpu.fixed()["other_processes"] is None


def test_reasons_that_are_no_slowing_do_not_count():
    assert nvidia.throttles("0x0000000000000001") == ()  # idle
    assert nvidia.throttles("0x0000000000000044") == ("power cap", "heat, by hardware")


def seen_by(samples, **fixed) -> dict:
    one = watch.Watch(lambda: None, lambda: fixed)
    with one:
        one.samples = samples
    return one.summary([(0, 10)]) | {"cpu_taken_by_others": 0.0}


def test_a_driver_that_hangs_does_not_hold_the_measurement(monkeypatch):
    monkeypatch.setattr(nvidia, "PATIENCE_S", 0.05)
    hanging = threading.Event()
    told = iter([{"driver": "1"}])  # and nothing after that
    with watch.Watch(hanging.wait, lambda: next(told)) as seen:
        pass
    assert seen.samples == []
    hanging.set()


def test_only_samples_from_timed_moments_count():
    samples = [Sample(1, clock_mhz=100, power_w=10), Sample(2, clock_mhz=101, power_w=20)]
    samples.append(Sample(99, clock_mhz=5000, power_w=1))
    seen = seen_by(samples)
    assert seen["samples"] == 2
    assert seen["clock_mhz"] == {"least": 100, "median": 100.5, "most": 101}
    one = watch.Watch(lambda: None, dict)
    one.samples = samples
    assert one.power_w([(0, 10)]) == 15
    assert one.power_w([(3, 4)]) is None


def test_a_power_that_is_a_mean_over_other_turns_does_not_count():
    one = watch.Watch(lambda: None, dict)
    one.samples = [Sample(2.0, power_w=30, power_over_s=1), Sample(3.0, power_w=20, power_over_s=1)]
    assert one.power_w([(1.5, 3.5)]) == 20
    one.samples = [Sample(3.0, power_w=20, power_over_s=1)]
    assert one.power_w([(1.5, 2.2), (2.8, 3.5)]) is None  # another model's turn lies between


def test_a_process_that_comes_while_models_are_timed_is_counted():
    told = iter([{"other_processes": 0}, {"other_processes": 1}])
    with watch.Watch(lambda: None, lambda: next(told)) as one:
        pass
    assert one.fixed["other_processes"] == 1


def test_power_of_this_moment_is_preferred(smi):
    assert 1 < nvidia.Gpu("GPU-1", H100).look().power_over_s < 2
    for older in ((7, 0), (8, 0)):  # whose power.draw is of this moment
        assert nvidia.Gpu("GPU-1", older).look().power_over_s < 1
    smi(power__draw__instant="240.0")
    seen = nvidia.Gpu("GPU-1", H100).look()
    assert seen.power_w == 240.0
    assert seen.power_over_s < 1  # the time of asking alone


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
    assert watch.find_warnings(seen_by(samples, **fixed), CUDA) == [warning] * bool(warning)


def test_others_on_the_processors_are_noticed():
    """A busy neighbour on this process's only processor."""
    import os

    allowed = os.sched_getaffinity(0)
    busy = [sys.executable, "-c", "while True: pass"]
    os.sched_setaffinity(0, {min(allowed)})
    neighbour = subprocess.Popen(busy)
    try:
        with watch.watch(CPU) as seen:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                pass
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, allowed)
    summary = seen.summary(())
    assert summary["cpu_taken_by_others"] > 0.2
    (warning,) = watch.find_warnings(summary, CPU)
    assert warning.code == "other_processes"
    assert warning.text.startswith("others took ")


def test_of_several_watches_the_worst_counts():
    hot = Sample(1.5, 1500, 90, throttled=("heat",))
    early = seen_by([Sample(1, 1500), hot], other_processes=1)
    late = seen_by([Sample(2, 1200)], other_processes=None)
    early["cpu_taken_by_others"], late["cpu_taken_by_others"] = 0.1, 0.0
    found = watch.worst([early, late])
    assert found["other_processes"] == 1
    assert found["samples"] == 3
    assert found["clock_drift_mhz"] == (1500, 1200)
    assert (found["clock_mhz"]["least"], found["clock_mhz"]["most"]) == (1200, 1500)
    assert found["power_w"]["most"] == 90
    assert found["throttled"] == {"heat": 0.5}
    assert found["cpu_taken_by_others"] == 0.1


def test_the_energy_counters_give_power(tmp_path):
    package = tmp_path / "intel-rapl:0"
    (package / "intel-rapl:0:0").mkdir(parents=True)  # a part of the package, counted in it
    for path, value in ((package, 1_000_000), (package / "intel-rapl:0:0", 7)):
        (path / "energy_uj").write_text(str(value))
    processor = sensors.Processor(rapl=tmp_path, cpus=tmp_path)
    assert processor.look().power_w is None  # there must be a before
    (package / "energy_uj").write_text(str(3_000_000))
    time.sleep(0.05)
    assert 0 < processor.look().power_w <= 2 / 0.05
    (package / "energy_uj").write_text("5")  # it wrapped around
    assert processor.look().power_w is None


def test_a_processor_that_tells_nothing_gives_no_samples(tmp_path):
    assert sensors.Processor(rapl=tmp_path, cpus=Path(tmp_path)).look() is None
