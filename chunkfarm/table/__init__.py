"""The table that all servers share, and the consensus that keeps it."""
