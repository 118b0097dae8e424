"""What a job file may name: one frozen value for each entry, with its parameters, defaults and bounds.

Pure, and without numpy or torch: every service and the command line read job files.
"""
