"""Redis: the ledger of jobs and rounds, the roster of trainers, and their atomic scripts."""
