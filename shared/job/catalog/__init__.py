"""The catalog of all that a job file may name: one frozen value per entry, with parameters, defaults and bounds.

Pure, and without numpy or torch: every service and the command line read job files.
"""
