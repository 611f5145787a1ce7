"""Train, evaluate and search: each job turns a spec and a folder into a record."""

from workflow.storage import provenance

provenance.note_running_code()  # what is on the disk before the heavy modules load
