"""What the notebooks import: `course` first, it sets up everything else."""
