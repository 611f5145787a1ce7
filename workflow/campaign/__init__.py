"""What is wanted: the YAML and its schema, specs, targets and what each needs. Never imports torch."""
