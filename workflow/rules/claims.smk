# What records make of the paper's claims.


rule claims:
    input:
        plan.claims_inputs,
    output:
        report(
            "{root}/claims.csv",
            caption="../report/item.rst",
            category="Claims",
            labels={"claims": "all"},
        ),
        "{root}/claims.md",
    log:
        "{root}/logs/claims.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        planning.WEIGH


rule partial_claims:
    input:
        plan.partial_claims_inputs,
    output:
        report(
            "{root}/claims.partial.csv",
            caption="../report/item.rst",
            category="Claims",
            labels={"claims": "from the records that were there"},
        ),
        "{root}/claims.partial.md",
    log:
        "{root}/logs/claims.partial.log",
    conda:
        "../../environment.yml"
    params:
        caption=plan.caption,
    shell:
        planning.WEIGH
