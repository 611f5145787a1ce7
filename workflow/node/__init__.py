"""What runs on a compute node: each job turns a spec and a folder into a record."""

from workflow import provenance

provenance.running()  # before the heavy modules load: what is on the disk now is what runs
