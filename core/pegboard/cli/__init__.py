"""The command line: one file per subject, `main.py` is the entry point."""
