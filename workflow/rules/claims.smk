# What records make of the paper's claims.


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
