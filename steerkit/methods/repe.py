"""RepE: representation engineering, reading by PCA and control by addition (arXiv 2310.01405)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from steerkit.interventions import Add, CapturePool, FiniteFloat, Intervention, Tokens
from steerkit.methods._base import Fit, Plan, SteeringMethod, at_depth, by_label
from steerkit.methods._differences import difference_components, neighbour_differences, require_neighbours
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_begun, require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key


class RepE(SteeringMethod):
    """Add the direction along which contrasting pairs differ most: the reading vector of linear artificial tomography.

    With `d(i) = h(positive i) - h(negative i)` at the last prompt token:

        v = first principal component of the d(i)      h' = h + c * scale * v

    Where the paper leaves a choice, or we differ from it:

    * It takes each difference in a random order, so that their mean is about zero, and centres them. The component is
      then that of the uncentred second moment of the d(i), which is what we compute: no randomness, and the common
      shift stays in.
    * `pairing`: `all` takes the differences of every positive with every negative, by their moments, which needs no
      pairs; `neighbours` takes anchors 2i and 2i + 1 as pair i, which is the better choice where the two differ in
      one respect only (the paper's stimuli: one text under two instructions).
    * The sign of a component is arbitrary. It chooses by a vote over the pairs, we by the mean difference.
    * It tunes c for each model, on a unit vector. `scale` makes 1 a dose: the length of the mean difference along v.
    * It steers a range of middle layers, found by a sweep, at every token. Without a sweep we take one, the block at
      60 % of the depth: added at several, a vector accumulates.

    Attributes:
        positive: Label that is steered towards.
        negative: Label that is steered away from.
        pairing: `all` or `neighbours`; see above.
        layers: 0-based decoder blocks; None for the one at 60 % of the depth.
        pool: What of the anchors is read: the `last` token, the `mean` over all, or that over the `answer` that they
            begin.
        images: Show the anchors with their images.
        scale: Length of the direction: `mean_projection` (that of the mean difference along it) or `unit`.
        tokens: Which tokens are steered.
        norm_preserving: Rescale each token to its norm, as the authors' code does on request.
        coefficient: The paper's c.
    """

    name: ClassVar[str] = "repe"
    paper: ClassVar[str] = "arXiv 2310.01405"
    distinct: ClassVar = ("positive", "negative")

    positive: str = "positive"
    negative: str = "negative"
    pairing: Literal["all", "neighbours"] = "all"
    layers: tuple[int, ...] | None = None
    pool: CapturePool = "last"
    images: bool = True
    scale: Literal["mean_projection", "unit"] = "mean_projection"
    tokens: Tokens = "all"
    norm_preserving: bool = False
    coefficient: FiniteFloat = 1.0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Both labels must occur, and no other; as neighbours, in pairs of one each."""
        require_labels(anchors, *self._labels)
        if self.pool == "answer":
            require_begun(anchors, *self._labels)
        if self.pairing == "neighbours":
            require_neighbours(anchors)
        layers = model.check_layers(at_depth(model, 0.6) if self.layers is None else self.layers)
        together = 2 if self.pairing == "neighbours" else 1
        return Plan(layers, second_moments=True, shown=(self.images,), together=together)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of each label, or the differences of neighbours."""
        captured = model.capture(batch, images=self.images, layers=layers, pool=self.pool)
        if self.pairing == "all":
            return by_label(batch, captured, self._labels)
        return {"difference": neighbour_differences(batch, captured, self.positive)}

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """The first principal component of the differences, its sign and length by their mean."""
        directions = {}
        for layer in layers:
            if self.pairing == "neighbours":
                difference = found["difference"][layer]
                component, mean = difference.principal(center=False)[0], difference.mean
            else:
                positive, negative = found[self.positive][layer], found[self.negative][layer]
                component, mean = difference_components(positive, negative)[0], positive.mean - negative.mean
            length = float(mean @ component) if self.scale == "mean_projection" else 1.0
            directions[Key(layer)] = length * component
        add = Intervention(
            operation=Add(),
            layers=tuple(layers),
            tokens=self.tokens,
            strength=self.coefficient,
            norm_preserving=self.norm_preserving,
        )
        return Fit(directions, (add,))
