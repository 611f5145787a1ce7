# Figures from records: PNG to look at, SVG for papers, and what they show as CSV.


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
