"""The pipeline: from YAML to jobs, from jobs to records, from records to tables and figures."""
