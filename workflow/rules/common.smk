# Before any training: the data are looked through once, and every model is built without weights.


rule prepare_data:
    input:
        spec=plan.data_spec,
    output:
        "{root}/data.json",
    log:
        "{root}/data/data.log",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT


rule preflight:
    input:
        spec=plan.preflight_spec,
    output:
        "{root}/preflight.json",
    log:
        "{root}/preflight/preflight.log",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT
