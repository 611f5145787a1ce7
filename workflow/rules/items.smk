# Tables, figures and the ledger of claims, from records: as CSV for programs, as Markdown for people, as pages for the
# report. Figures are PNG for screens and SVG for papers, and their CSV has the numbers that they show.

for name, item, category, labels in (
    ("table", "{table}", plan.category, plan.labels),
    ("partial_table", "{table}.partial", plan.category, plan.partial_labels),
    ("claims", "claims", "Claims", {"shows": "All claims"}),
    (
        "partial_claims",
        "claims.partial",
        "Claims",
        {"shows": "All claims, from the records that were there"},
    ),
):

    rule:
        name:
            name
        input:
            plan.partial_inputs if item.endswith(".partial") else plan.item_inputs,
        output:
            first=f"{{root}}/{item}.csv",
            md=f"{{root}}/{item}.md",
            page=report(
                f"{{root}}/{item}.html",
                caption="../report/item.rst",
                category=category,
                labels=labels,
            ),
        log:
            f"{{root}}/logs/{item}.log",
        conda:
            "../../environment.yml"
        params:
            caption=plan.caption,
        shell:
            rule_inputs.MAKE_ITEM


rule figure:
    input:
        plan.item_inputs,
    output:
        first=report(
            "{root}/{figure}.png",
            caption="../report/item.rst",
            category=plan.category,
            labels=plan.labels,
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
        rule_inputs.MAKE_ITEM


rule whole:
    input:
        plan.whole_inputs,
    output:
        touch("{root}/whole"),
    log:
        "{root}/logs/whole.log",
    conda:
        "../../environment.yml"
