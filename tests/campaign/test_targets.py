"""Names of targets: those that exist, and what a mistyped one is told."""

import pytest

from workflow.campaign import targets
from workflow.campaign.config import ConfigError


def test_all_targets_are_ones(config):
    names = targets.every(config)
    assert len(set(names)) == len(names)
    for name in names:
        if name.startswith("results/demo/"):
            targets.spec_of(config, name)


@pytest.mark.parametrize(
    ("mistyped", "nearest"),
    [
        ("results/demo/table9.csv", "results/demo/table4.csv"),
        ("results/dmeo/table1.csv", "results/demo/table1.csv"),
        ("results/demo/runs/evo_deit_tiy/train.json", "results/demo/runs/evo_deit_tiny/train.json"),
        ("results/demo/runs/deit_tiny/search.json", "results/demo/runs/ps_deit_tiny/search.json"),
        ("results/demo/runs/evo_deit_tiny", "results/demo/runs/evo_deit_tiny/train.json"),
        ("results/demo/offtheshelf/deit_tny.json", "results/demo/offtheshelf/deit_tiny.json"),
        ("results/weights/deit_small_patch16_224.fb_in1.json", "results/weights/deit_small_patch16_224.fb_in1k.json"),
        ("results/demo/offteshelf.csv", "results/demo/offtheshelf.csv"),
        ("results/demo/figure7.png", "results/demo/figure6.png"),
        ("results/demo/analyses/ska.json", "results/demo/analyses/cka.json"),
        ("results/throughput/deit_smal/cuda-paper-fp32-b256.json",
         "results/throughput/deit_small/cuda-paper-fp32-b256.json"),
        ("results/throughput/deit_small/cuda-papr-fp32-b256.json",
         "results/throughput/deit_small/cuda-paper-fp32-b256.json"),
        ("results/training/deit_small/cuda-paper-fp61.json",
         "results/training/deit_small/cuda-paper-fp16.json"),
        ("results/weights/regnety_160.deit_in1.json", "results/weights/regnety_160.deit_in1k.json"),
        ("results/tabel1.csv", "results/table1.csv"),
        ("table1.csv", "results/table1.csv"),
        ("results/demo/claims.cvs", "results/demo/claims.csv"),
        ("results/demo/hole", "results/demo/whole"),
    ],
)  # fmt: skip
def test_a_mistyped_target_names_the_nearest(config, mistyped, nearest):
    with pytest.raises(targets.TargetError) as error:
        targets.spec_of(config, mistyped)
    assert str(error.value).startswith(f"{mistyped} is no target")
    assert nearest in str(error.value).split("did you mean ")[1]
    assert "\n" not in str(error.value)


def test_a_folder_that_no_setting_has_is_told(config, uncommented):
    with pytest.raises(targets.TargetError) as error:
        targets.spec_of(config, "results/mydata/methods.csv")
    assert str(error.value) == (
        "results/mydata/methods.csv is no target: no setting has results/mydata; take the '# ' from the lines of "
        "mydata in workflow/config/settings.yaml (docs/your-data.md)."
    )
    with pytest.raises(ConfigError, match=r"no setting has `results: results/mydata`; take the '# ' from the lines of"):
        config.setting_of("results/mydata")
    assert targets.spec_of(uncommented, "results/mydata/methods.csv") is None
    with pytest.raises(targets.TargetError, match=r"no setting has results/cifar; did you mean 'results/cifar10/met"):
        targets.spec_of(config, "results/cifar/methods.csv")
    with pytest.raises(targets.TargetError, match=r"did you mean 'results/runs/deit_tiny/train.json'"):
        targets.spec_of(config, "results/run/deit_tiny/train.json")


def test_a_point_that_can_not_be_measured_says_why(config):
    with pytest.raises(targets.TargetError, match="mode paper is fp32"):
        targets.spec_of(config, "results/throughput/deit_small/cuda-paper-bf16-b256.json")


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        ("results/table1.csv", "imagenet"),
        ("results/demo/table1.csv", "demo"),
        ("results/cifar10/table1.csv", "cifar10"),
        ("results/runs/deit_tiny/train.json", "imagenet"),
    ],
)
def test_the_path_alone_chooses_the_setting(config, target, setting):
    assert targets.split_root(config, target)[0] == setting
