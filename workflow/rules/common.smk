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
        planning.SUBMIT


rule preflight:
    input:
        spec="{root}/preflight/{models}/spec.json",
    output:
        "{root}/preflight/{models}.json",
    log:
        "{root}/preflight/{models}/preflight.log",
    wildcard_constraints:
        models="[0-9a-f]+",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        planning.SUBMIT
