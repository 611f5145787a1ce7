# Rules that start a job. All have one shape, which the kinds of jobs fill (workflow/campaign/kinds.py); their names are
# prepare_data, preflight, search, train, evaluate, analyse, throughput, training_cost, offtheshelf and dense_prediction.

for kind in filter(lambda kind: kind.module, kinds.KINDS.values()):

    rule:
        name:
            kind.rule
        input:
            unpack(plan.inputs(kind)),
        output:
            rule_inputs.output(kind),
        log:
            rule_inputs.log(kind),
        conda:
            "../../environment.yml"
        resources:
            device_share=kind.device_share,
        params:
            spec=plan.spec(kind),
            data=plan.data_option,
            resources=plan.resources,
        shell:
            rule_inputs.SUBMIT


# Where a setting names a run's weights (`checkpoints`), they are evaluated instead of trained.
use rule train as evaluate_given with:
    wildcard_constraints:
        root=plan.roots_given(),


ruleorder: evaluate_given > train


# Weights from elsewhere are fetched on the login node, as compute nodes are often offline.
rule fetch:
    input:
        unpack(plan.inputs(kinds.KINDS["fetch"])),
    output:
        rule_inputs.output(kinds.KINDS["fetch"]),
    log:
        rule_inputs.log(kinds.KINDS["fetch"]),
    conda:
        "../../environment.yml"
    params:
        spec=plan.spec(kinds.KINDS["fetch"]),
    shell:
        rule_inputs.FETCH
