"""The operations, one module a resource. Each is added with `guard.operation` and declares its permission."""
