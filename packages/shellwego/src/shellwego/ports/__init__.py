"""What the platform needs from the world, as protocols. Each has drivers, a memory one among them, and a contract suite."""
