"""What the report and the model card look like."""
