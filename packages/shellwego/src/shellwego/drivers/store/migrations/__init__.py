"""Migrations of the SQL schema: expand first, contract one release later, so that two neighbouring versions can share it."""
