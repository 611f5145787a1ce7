"""Measure speed and memory: throughput, training steps and their ceilings."""

from workflow.storage import provenance

provenance.note_running_code()  # what is on the disk before the heavy modules load
