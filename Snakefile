# The paper as targets: `snakemake --profile slurm results/table1.csv`; more in README.md and docs/.
import sys
from contextlib import ExitStack

from snakemake.utils import min_version

if str(workflow.basedir) != str(workflow.current_basedir):
    sys.exit(
        f"{workflow.current_basedir}/Snakefile can't be a module or an include of another workflow: "
        "clone the repository and start snakemake in the clone; another workflow may then read its results/."
    )
sys.path.insert(0, str(workflow.basedir))

from workflow.command_line import check_folder, name_user
from workflow.campaign import kinds, rule_inputs, targets
from workflow.launch import display, startup
from workflow.paper import cards
from workflow.tracking import sync

min_version("9.0")


report: "workflow/report/workflow.rst"


name_user()
check_folder()
held = ExitStack()  # what snakemake holds until it ends
plan, command_line = startup.begin(workflow)
follower = []


wildcard_constraints:
    **plan.wildcards(),


include: "workflow/rules/jobs.smk"
include: "workflow/rules/items.smk"


onstart:
    startup.check_requests(workflow.dag.needrun_jobs())
    startup.check_rights(workflow.dag.needrun_jobs())
    startup.announce(plan, workflow.dag.needrun_jobs())
    follower.append(sync.start())
    screen.begin(display.jobs_of(workflow.dag))


onsuccess:
    screen.end()
    cards.update(plan.config)
    sync.finish(follower.pop())


onerror:
    screen.end()
    cards.update(plan.config)
    sync.finish(follower.pop())


rule all:
    default_target: True
    input:
        targets.DEFAULT,


startup.start(workflow, plan, command_line, held)
screen = display.install(plan.runs_jobs, command_line.options)
