"""The trainer's parent process: hears rounds, hands tasks to its slots, and never imports torch."""
