"""What the launch door does: commands on rented TPUs, under Slurm, on a list of hosts."""
