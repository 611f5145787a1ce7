# A look into a trained model: what figures of attention, similarity and selection are drawn from.


rule analyse:
    input:
        unpack(plan.analysis_inputs),
    output:
        "{root}/analyses/{analysis}.json",
    log:
        "{root}/analyses/{analysis}/analysis.log",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT
