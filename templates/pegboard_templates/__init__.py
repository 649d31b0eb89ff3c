"""Templates that `pegboard new` and cookiecutter render; there is no code here."""
