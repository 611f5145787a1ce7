# Measured beside printed: as CSV for programs, as Markdown for people.


rule table:
    input:
        plan.table_inputs,
    output:
        report(
            "{root}/{table}.csv",
            caption="../report/item.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        "{root}/{table}.md",
    log:
        "{root}/logs/{table}.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        planning.COMPILE


rule partial_table:
    input:
        plan.partial_inputs,
    output:
        "{root}/{table}.partial.csv",
        "{root}/{table}.partial.md",
    log:
        "{root}/logs/{table}.partial.log",
    conda:
        "../../environment.yml"
    shell:
        planning.COMPILE
