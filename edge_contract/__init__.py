"""What crosses a wire or a disk between two parts of Lighterman, and nothing else."""
