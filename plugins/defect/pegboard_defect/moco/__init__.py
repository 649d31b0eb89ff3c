"""A backbone from unlabelled pictures (`moco`): a solution for Pegboard."""
