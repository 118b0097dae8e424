"""Aggregation: update files as flat buffers, their exact fold, the strategies and the compression."""
