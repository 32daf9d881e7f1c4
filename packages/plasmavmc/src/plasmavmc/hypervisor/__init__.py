"""VMMs: `backend` is the port, `registry` chooses, `probe` proves; one folder (or file) a backend."""
