"""What runs by itself: each loop on hints, on a timer, and at start."""
