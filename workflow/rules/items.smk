# Tables, figures and the ledger of claims, from records: as CSV for programs, as Markdown for people, as pages for the
# report. Figures are PNG to look at and SVG for papers, and their CSV has the numbers that they show.


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


rule figure:
    input:
        plan.figure_inputs,
    output:
        first=report(
            "{root}/{figure}.png",
            caption="../report/item.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        svg="{root}/{figure}.svg",
        numbers="{root}/{figure}.csv",
    log:
        "{root}/logs/{figure}.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        rule_inputs.DRAW


rule claims:
    input:
        plan.claims_inputs,
    output:
        first="{root}/claims.csv",
        md="{root}/claims.md",
        page=report(
            "{root}/claims.html",
            caption="../report/item.rst",
            category="Claims",
            labels={"claims": "all"},
        ),
    log:
        "{root}/logs/claims.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        rule_inputs.WEIGH


rule partial_claims:
    input:
        plan.partial_inputs,
    output:
        first="{root}/claims.partial.csv",
        md="{root}/claims.partial.md",
        page=report(
            "{root}/claims.partial.html",
            caption="../report/item.rst",
            category="Claims",
            labels={"claims": "from the records that were there"},
        ),
    log:
        "{root}/logs/claims.partial.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        rule_inputs.WEIGH


rule whole:
    input:
        plan.whole_inputs,
    output:
        touch("{root}/whole"),
    log:
        "{root}/logs/whole.log",
    conda:
        "../../environment.yml"
