# Measured beside printed: as CSV for programs, as Markdown for people, as a page for the report.


rule table:
    input:
        plan.table_inputs,
    output:
        first="{root}/{table}.csv",
        md="{root}/{table}.md",
        page=report(
            "{root}/{table}.html",
            caption="../report/item.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        "{root}/logs/{table}.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        rule_inputs.COMPILE


rule partial_table:
    input:
        plan.partial_inputs,
    output:
        first="{root}/{table}.partial.csv",
        md="{root}/{table}.partial.md",
        page=report(
            "{root}/{table}.partial.html",
            caption="../report/item.rst",
            category="Tables",
            labels={"table": "{table}, from the records that were there"},
        ),
    log:
        "{root}/logs/{table}.partial.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        rule_inputs.COMPILE
