"""Interventions: what is done to a hidden state, where, when and how much, as data, and its arithmetic.

An intervention answers for itself; nobody asks which class its operation is.

What an operation does: `intervention.operation` is an `Operation`, one file each under `operations/`, all of them in
the table `OPERATIONS`. Ask it

- `stored`, `measured`: the direction that it works along, and what must be measured on the prompt (None: neither);
- `effect`: `moves` along the direction, `rescales` what is there, or `injects` something known on the prompt alone;
- `additive`: whether it adds `strength * direction` to every token, so that such operations sum. These alone depend on
  the length of the direction; all others use its line;
- `size(strengths, norm, length)`: how large the change is at most, relative to the hidden state;
- `removal(strength)`, `undoes(along)`, `alignment(direction, target)`: which way it pushes, and what it takes back;
- `prepare(direction)`, `bind(direction, contrast)`: its arithmetic, for engines.

A new operation is a file and its line in the table: what is not in the table, no pack can name.

Whom it reaches: `intervention.selector` means tokens of a call, and `intervention.reach` is the same as sets.
`one.reach.shares_tokens(other.reach)` tells whether some token may be changed by both, `meets` whether that can be at
one place, `reach.pictured` whether prompts with an image are reached, or without. To add up what acts on one and the
same token, go through `representatives(reaches)` and keep the interventions whose reach `includes` the token.

How strongly: `strength_bounds(layer)` holds the ends of what the strength can be, with every factor of rows and steps;
`fixed` tells whether there is but one.
"""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
