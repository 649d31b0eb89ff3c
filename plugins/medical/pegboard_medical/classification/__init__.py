"""Medical classification: a finding's kind from its volume or picture."""
