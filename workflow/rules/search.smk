# What a method looks for on a trained model before its own training: PS-ViT's patch sets.


rule search:
    input:
        unpack(plan.search_inputs),
    output:
        "{root}/runs/{run}/search.json",
    log:
        "{root}/runs/{run}/search/search.log",
    conda:
        "../../environment.yml"
    resources:
        device_share=1,
    params:
        data=plan.data_option,
        resources=plan.resources,
    shell:
        rule_inputs.SUBMIT
