"""What every operation answers for itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from steerkit.interventions._directions import Frozen, MeasuredContrast, StoredDirection

if TYPE_CHECKING:
    from torch import Tensor

Effect: TypeAlias = Literal["moves", "rescales", "injects"]
"""What happens along the direction. `moves`: the state moves along it, whatever is there already. `rescales`: what is
there is removed, amplified or bounded, and nothing else is added. `injects`: something measured on the prompt is added
along it, whose sign and size are not known beforehand."""

Arithmetic: TypeAlias = Callable[..., "Tensor"]
"""`function(h, *arguments, strength)`: `[n, hidden]` from `[n, hidden]`; the strength is a number or `[n]`."""


@dataclass(frozen=True)
class Size:
    """How large a change is at most, relative to the norm of the hidden state.

    Attributes:
        relative: The bound; None where it depends on the norm of the hidden state, and that is not known.
        removes: Whether the change only takes away from what is there, and at most the whole of it, so that
            repeating it takes away no more.
    """

    relative: float | None
    removes: bool = False


class Operation(Frozen, ABC):
    """Base of the operations; each is a final class in a file of its own, named in the table `OPERATIONS`.

    The fields of a subclass are what a pack says of it: `kind`, its direction, its numbers. The rest of the library
    asks through what is declared here, and never which class an operation is.

    Attributes:
        effect: See `Effect`.
        spans: Whether it takes several directions `[k, hidden]` at once and works on their span.
    """

    effect: ClassVar[Effect]
    spans: ClassVar[bool]

    if TYPE_CHECKING:
        kind: Any  # in each subclass, a `Literal` of its own

    @property
    @abstractmethod
    def stored(self) -> StoredDirection | None:
        """The stored direction that it works along, if any."""

    @property
    @abstractmethod
    def measured(self) -> MeasuredContrast | None:
        """The contrast that it needs measured on each prompt, if any."""

    @property
    @abstractmethod
    def additive(self) -> bool:
        """Whether it adds the stored direction times the strength to every token, whatever the token's state.

        Such additions commute, sum, and can be written as plain control vectors. They alone depend on the length of
        the direction; every other operation uses the direction's line, or the span of several.
        """

    @abstractmethod
    def prepare(self, direction: Tensor) -> Tensor:
        """What the arithmetic uses of the stored direction: as it is, of norm 1, or an orthonormal basis; float32."""

    @abstractmethod
    def bind(self, direction: Tensor | None, contrast: Tensor | None) -> tuple[Arithmetic, tuple[Any, ...]]:
        """The function that changes tokens, and its arguments between the tokens and the strength.

        The function must be defined at the top of its module: remote traces ship it by its source.

        Args:
            direction: What `prepare` made of the stored direction.
            contrast: `[n, hidden]`: what was measured on the prompt of each token.
        """

    @abstractmethod
    def size(self, strengths: tuple[float, ...], norm: float | None, length: float | None) -> Size:
        """How large the change is at most.

        Args:
            strengths: The strengths that may occur.
            norm: Norm of the hidden states; None if it is not known.
            length: Norm of the stored direction; None if there is none, or several.
        """

    @abstractmethod
    def removal(self, strength: float) -> float:
        """How much of what is there along the direction it takes away; negative where it adds to it.

        Of an operation that moves the state this is the negated strength: the sign says which way.
        """

    @abstractmethod
    def undoes(self, along: float) -> bool:
        """Whether it takes back what another addition brings along its direction, where it removes anything.

        Args:
            along: Coordinate of the other addition along this direction; only its sign counts.
        """

    @abstractmethod
    def alignment(self, direction: Tensor, target: Tensor) -> float:
        """The cosine with, or share of, a unit direction in what the operation works on at a positive strength.

        Negative where it moves away from the target, or takes it away.

        Args:
            direction: The stored direction, `[hidden]` or `[k, hidden]`.
            target: `[hidden]`, of norm 1.
        """

    @abstractmethod
    def describe(self) -> str:
        """What it does, in a few words for people."""


class Rescaling(Operation, ABC):
    """Base of the operations on what a token has along a stored direction."""

    if TYPE_CHECKING:
        direction: StoredDirection  # declared by each subclass, so that packs name it behind the kind

    effect: ClassVar[Effect] = "rescales"

    @property
    def stored(self) -> StoredDirection:
        """The direction."""
        return self.direction

    @property
    def measured(self) -> None:
        """None."""
        return None

    @property
    def additive(self) -> bool:
        """No: it depends on the token."""
        return False
