"""Suspended VMs on disk: `manifest` (what a snapshot is, and whether it is this host's), `content` (memory and state,
with a digest of each piece), `files` (where they lie, and when they count) and `room` (what they may take)."""
