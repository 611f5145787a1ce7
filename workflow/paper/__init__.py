"""From records to the paper's tables and figures."""
