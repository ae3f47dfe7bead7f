"""Stands before the package of this name, so that a load is measured as it is where that is not installed."""

raise ImportError("hidden for a measurement")
