"""The sample app and the builder of its image."""
