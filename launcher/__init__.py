"""Recipe and machine -> processes. Imports no torch, so that it runs on a login node."""
