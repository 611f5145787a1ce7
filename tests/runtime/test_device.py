"""Which device is used, and what is said where the installed torch can't serve it."""

import pytest
import torch

from workflow.runtime import device
from workflow.train import factory


@pytest.mark.parametrize(
    ("capability", "arches", "served"),
    [
        ((7, 0), ["sm_70", "sm_80"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_which_gpus_a_torch_serves(capability, arches, served):
    assert device.served(capability, arches) == served


@pytest.mark.parametrize(
    ("capability", "arches", "lock"),
    [
        ((12, 0), ["sm_70", "sm_90"], "requirements-cuda13.lock"),
        ((7, 0), ["sm_75"], "requirements.lock"),
    ],
)
def test_an_unserved_gpu_is_answered_with_the_other_lock(capability, arches, lock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arches)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    with pytest.raises(device.DeviceError, match=f"LOCK={lock}"):
        device.choose("auto")
    assert device.choose("cpu").type == "cpu"


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(device.DeviceError, match="torch sees no GPU"):
        device.choose("cuda")


def test_what_lacks_memory_is_known_by_its_words_and_through_what_wraps_it():
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for words in ("CUBLAS_STATUS_ALLOC_FAILED when calling ...", "std::bad_alloc",
                  "Triton Error [CUDA]: out of memory", "CUDA error: out of memory"):  # fmt: skip
        assert device.is_out_of_memory(RuntimeError(words))
    wrapped = RuntimeError("the compiler failed")
    wrapped.inner_exception = torch.OutOfMemoryError("no more")
    assert device.is_out_of_memory(wrapped)
    assert not device.is_out_of_memory(RuntimeError("sizes differ"))


def test_bf16_is_refused_where_a_gpu_would_emulate_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A V100")
    with pytest.raises(device.DeviceError, match="A V100 has no units for bf16"):
        device.check_precision("bf16", torch.device("cuda"), "measure fp16 there")
    device.check_precision("fp16", torch.device("cuda"), "")
    device.check_precision("bf16", torch.device("cpu"), "")
    with pytest.raises(device.DeviceError, match="fp16 needs a GPU; measure bf16 there"):
        device.check_precision("fp16", torch.device("cpu"), "measure bf16 there")
    with pytest.raises(device.DeviceError, match=r"for bf16 .*, or set `amp` in .*recipes.yaml: null runs"):
        factory.mixed_precision("bf16", torch.device("cuda"))


def test_another_process_is_asked_about_the_device():
    assert device.ask("cpu") == {"device": device.describe(torch.device("cpu")), "bf16": True}
