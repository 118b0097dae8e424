"""How float32 vectors are made smaller on their way, and read again tile by tile without being expanded.

Pure, in NumPy: one module for each encoding of `shared.job.catalog.compression`.
"""
