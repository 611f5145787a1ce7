# What a training step costs in seconds and bytes: the supplement's claim on memory.


rule training_cost:
    input:
        unpack(plan.training_cost_inputs),
    output:
        "{root}/training/{section}/{point}.json",
    log:
        "{root}/training/{section}/{point}/training.log",
    wildcard_constraints:
        point=plan.training_cost_points,
    conda:
        "../../environment.yml"
    resources:
        device_share=100,  # alone on its device
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT
