"""The conformance kit: what every solution must pass, ours and a stranger's."""

from pegboard.testing.conformance import CHECKS, Outcome, check_plugin

__all__ = ["CHECKS", "Outcome", "check_plugin"]
