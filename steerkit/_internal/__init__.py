"""What every room needs and nobody outside steerkit should import."""
