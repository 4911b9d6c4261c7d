"""Engines that `child.py` runs, each by its path and alone; nothing here is imported as a package."""
