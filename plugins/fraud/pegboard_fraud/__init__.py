"""Card-transaction fraud: a solution for Pegboard."""
