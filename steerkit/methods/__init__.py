"""The built-in methods, one file each; found through the entry-point group `steerkit.methods`."""
