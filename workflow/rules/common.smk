# What all rules share: the names that may stand in a target. They are the YAML's (workflow/config/).


wildcard_constraints:
    **plan.wildcards(),
