rule table1:
    input:
        plan.table_inputs,
    output:
        report(
            "{root}/table1.csv",
            caption="../report/table1.rst",
            category="Tables",
            labels={"table": "1"},
        ),
    log:
        "{root}/logs/table1.log",
    conda:
        "../../environment.yml"
    shell:
        planning.COMPILE


rule table1_partial:
    input:
        plan.partial_inputs,
    output:
        "{root}/table1.partial.csv",
    log:
        "{root}/logs/table1.partial.log",
    conda:
        "../../environment.yml"
    shell:
        planning.COMPILE
