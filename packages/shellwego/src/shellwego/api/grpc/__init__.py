"""The engine's services (`plasmavmc.v1`) over the whole platform."""
