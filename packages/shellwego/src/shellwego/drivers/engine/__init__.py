"""The port `engine`: `plasmavmc` runs real microVMs on this host, `memory` pretends to, on any clock."""
