"""Runtimes that the core brings, as plugins like any other."""
