# What a training step costs in seconds and bytes: the supplement's claim on memory.


rule training_cost:
    input:
        unpack(plan.training_cost_inputs),
    output:
        "{root}/training/{section}/{device}-{mode}-{precision}.json",
    log:
        "{root}/training/{section}/{device}-{mode}-{precision}/training.log",
    wildcard_constraints:
        device="cpu|cuda",
        mode="paper|fused",
        precision="fp32|bf16|fp16",
    conda:
        "../../environment.yml"
    resources:
        device_share=100,  # alone on its device
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        planning.SUBMIT
