"""Inspection of parts by their pictures: a solution for Pegboard."""
