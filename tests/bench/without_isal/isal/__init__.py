"""Hides the package of this name, so that a load can be measured as on a machine without it."""

raise ImportError("hidden for a measurement")
