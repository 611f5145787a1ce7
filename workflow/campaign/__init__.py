"""The YAML and its schema, specs, kinds of jobs, targets and what each needs. Never imports torch."""
