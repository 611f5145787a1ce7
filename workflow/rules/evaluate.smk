# Weights from elsewhere: fetched on the login node, and evaluated, in a training's place
# (`checkpoints`) or as targets of their own (`evaluations`).


rule fetch:
    input:
        spec=plan.fetch_spec,
    output:
        "{root}/weights/{tag}.json",
    log:
        "{root}/weights/{tag}/fetch.log",
    wildcard_constraints:
        tag="[A-Za-z0-9][A-Za-z0-9._-]*",
    conda:
        "../../environment.yml"
    shell:
        rule_inputs.FETCH


rule evaluate:
    input:
        unpack(plan.evaluation_inputs),
    output:
        "{root}/evaluations/{evaluation}.json",
    log:
        "{root}/evaluations/{evaluation}/evaluate.log",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT


use rule train as evaluate_given with:
    wildcard_constraints:
        root=plan.roots_given,


ruleorder: evaluate_given > train
