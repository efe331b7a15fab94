"""How the bundled demo models and their files were made; part of the repository, not of the package."""
