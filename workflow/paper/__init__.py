"""From records to the paper's tables and figures."""

import os

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported: notebooks' backends are not here
