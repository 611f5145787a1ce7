"""What is kept on disk: records, journals, attempts, locks and the version of the code. Never imports torch."""
