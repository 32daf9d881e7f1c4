"""The file `shellwego.toml`: what it may say, how it is read, and the deployment that it asks for."""
