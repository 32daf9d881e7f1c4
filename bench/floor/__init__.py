"""The floor that cold starts are compared with: a microVM started by hand."""
