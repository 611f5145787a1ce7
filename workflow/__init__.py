"""Everything that runs experiments, by the place where it runs: login/, node/, paper/."""
