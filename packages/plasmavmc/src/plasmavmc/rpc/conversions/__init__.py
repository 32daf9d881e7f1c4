"""Between the schema's messages and the engine's types.

What comes in is hostile: each value that makes no sense becomes an `InvalidSpecError` with its path in the request, such
as `spec.networks[0].ipv4`. What goes out never holds environment or files of a VM.
"""
