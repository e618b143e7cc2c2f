"""A folder for `PYTHONPATH`: what lies here takes effect in processes of the harness."""
