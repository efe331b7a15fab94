"""A real aligned language model behind an image: how it is made, and what steering does to it."""
