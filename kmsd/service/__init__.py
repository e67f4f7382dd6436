"""What operations mean, knowing nothing of sockets."""
