"""Commands that show jobs: live, as tables, as files, and in experiment trackers."""
