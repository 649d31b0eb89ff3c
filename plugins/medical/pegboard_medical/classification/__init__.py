"""The second solution of this plugin: what kind a finding is."""
