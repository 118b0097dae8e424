"""The process of a service: its settings, start and end, probes, logs and failpoints."""
