"""Demo models whose safety alignment holds for text alone, and the toy world they live in."""
