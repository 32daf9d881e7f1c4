"""The host's side of what runs inside a microVM: what it boots from, and the channel to its init."""
