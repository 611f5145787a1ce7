rule throughput:
    input:
        unpack(plan.throughput_inputs),
    output:
        "{root}/throughput/{section}/{device}-{mode}-{precision}-b{batch}.json",
    log:
        "{root}/throughput/{section}/{device}-{mode}-{precision}-b{batch}/throughput.log",
    wildcard_constraints:
        device="cpu|cuda",
        mode="paper|fused",
        precision="fp32|bf16|fp16",
        batch="[1-9][0-9]*",
    conda:
        "../../environment.yml"
    resources:
        device_share=100,  # alone on its device
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        planning.SUBMIT
