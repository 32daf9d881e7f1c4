"""Where volumes live: disks that outlive VMs, and points in their lives."""
