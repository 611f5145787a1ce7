# How fast a section's models are, in turns.


rule throughput:
    input:
        unpack(plan.throughput_inputs),
    output:
        "{root}/throughput/{section}/{point}.json",
    log:
        "{root}/throughput/{section}/{point}/throughput.log",
    wildcard_constraints:
        point=plan.throughput_points,
    conda:
        "../../environment.yml"
    resources:
        device_share=100,  # alone on its device
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT
