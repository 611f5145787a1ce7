# Every table and every figure of a setting, as one target.


rule whole:
    input:
        plan.whole_inputs,
    output:
        touch("{root}/whole"),
    log:
        "{root}/logs/whole.log",
    conda:
        "../../environment.yml"
