"""What runs on a compute node: each job turns a spec and a folder into a record."""

import multiprocessing

from workflow import provenance

if multiprocessing.parent_process() is None:  # a loader's process belongs to one that has noted it
    provenance.running()  # before the heavy modules load: what is on the disk now is what runs
