"""Analyses of trained models: attention, similarity and selection, as numbers for figures."""

from workflow.storage import provenance

provenance.note_running_code()  # what is on the disk before the heavy modules load
