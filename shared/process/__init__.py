"""A service as a process: its settings, start and end, probes, logs and failpoints."""
