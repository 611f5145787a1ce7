# A row's training, from its own weights or those it starts from.


rule train:
    input:
        unpack(plan.train_inputs),
    output:
        "{root}/runs/{run}/train.json",
    log:
        "{root}/runs/{run}/train.log",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT
