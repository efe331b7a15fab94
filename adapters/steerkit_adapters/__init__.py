"""The model families that steerkit knows, one module each, found through the entry-point group `steerkit.adapters`."""
