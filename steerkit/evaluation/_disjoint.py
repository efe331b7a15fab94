"""Anchors, dev and test: split so that nothing of one is in another, and refused where something is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations

from steerkit._internal.validation import expect, expect_each, expect_whole
from steerkit._text import quoted
from steerkit.errors import OptionError, SampleError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._records import Kind
from steerkit.evaluation._suites import KINDS, Suite, check_suite
from steerkit.evaluation._text import folded
from steerkit.models import Sample, anchor_digest
from steerkit.vectors import SteeringVector


def split(suite: Suite, shares: Mapping[str, float], seed: int = 0) -> dict[str, Suite]:
    """Split a suite; what shares a cluster, such as an image or a pair, stays together.

    Clusters of one composition, such as pairs of a harmful and a harmless prompt, are shared out alike. Which go where
    depends on their names and the seed, not on their order.

    Args:
        suite: The suite.
        shares: The share of each part, as `{"anchors": 0.3, "dev": 0.2, "test": 0.5}`; together at most 1.
        seed: Of the choice.

    Raises:
        OptionError: The shares are impossible.
        EmptyAnchorSetError: A part would have no prompts.
    """
    check_suite(suite)
    expect(Mapping, "a mapping of names to shares, as {'dev': 0.3, 'test': 0.7}", shares=shares)
    expect_whole(0, seed=seed)
    for name, share in shares.items():
        expect(str, "a name", shares=name)
        expect(float | int, "a share, above 0", **{f"shares[{name!r}]": share})
    if not shares or not all(share > 0 for share in shares.values()) or not sum(shares.values()) <= 1 + 1e-9:
        raise OptionError(f"the shares are {quoted(dict(shares))}", expected="shares above 0, together at most 1")
    members: dict[str, list[tuple[Kind, str]]] = {}
    for kind, name in suite.named:
        members.setdefault(_cluster(suite.named[kind, name], kind), []).append((kind, name))
    alike: dict[tuple[Kind, ...], list[str]] = {}
    for cluster, found in members.items():
        alike.setdefault(tuple(sorted(kind for kind, _ in found)), []).append(cluster)
    chosen: dict[str, set[tuple[Kind, str]]] = {name: set() for name in shares}
    for clusters in alike.values():
        clusters.sort(key=lambda cluster: hashlib.sha256(f"{seed} {cluster}".encode()).digest())
        ends = [round(len(clusters) * min(end, 1.0)) for end in accumulate(shares.values())]
        for name, start, end in zip(shares, [0, *ends], ends, strict=False):
            chosen[name].update(key for cluster in clusters[start:end] for key in members[cluster])
    return {name: _only(suite, name, keys) for name, keys in chosen.items()}


def check_disjoint(sets: Mapping[str, Suite | Sequence[Sample]]) -> None:
    """Refuse sets of which two share a prompt.

    Prompts are the same when their texts are, but for case, spaces and typography, and their images' pixels are; a text
    without images is the same as that text with any, since it can be shown without. Label and caption do not count.
    Suites read from the same files, their revisions say so, must not share a cluster either.

    Args:
        sets: The sets by name, as `{"anchors": samples, "dev": suite, "test": suite}`.

    Raises:
        SampleError: Two sets share prompts, or clusters; the message names the first and counts them.
        MissingImageError: An image can't be read.
        OptionError: An argument is of another type.
    """
    expect(Mapping, "a mapping of names to suites or lists of samples", sets=sets)
    held = {name: _Held.of(name, given) for name, given in sets.items()}
    for (one, left), (other, right) in combinations(held.items(), 2):
        same = [a for text in left.texts.keys() & right.texts.keys() for a in left.shared(text, right)]
        if same:
            raise SampleError(
                f"{one} and {other} share {len(same)} prompts, such as {quoted(min(same))}",
                expected="sets that have no prompt in common",
                fix="leave them out of one; sk.evaluation.split(suite, shares) splits a suite",
            )
        if left.files and left.files == right.files and (clusters := left.clusters & right.clusters):
            raise SampleError(
                f"{one} and {other} share {len(clusters)} clusters, such as {quoted(min(clusters))}",
                expected="rows of one image, or twins, in one set",
                fix="sk.evaluation.split(suite, shares) keeps them together",
            )


def check_unseen(suite: Suite, *fitted: SteeringVector | Sequence[Sample]) -> None:
    """Refuse a suite that holds anchors: those that are given, or those of a vector where its record tells that.

    Args:
        suite: The prompts on which something is measured or chosen.
        fitted: Anchors; or vectors, whose records hold one digest for all of their anchors: it tells that a suite, or
            its requests, or one kind of them, are those very samples.

    Raises:
        SampleError: It does.
    """
    requests = ("harmful", "harmless")
    parts = [*((kind,) for kind in KINDS), requests, requests[::-1], KINDS]
    digests = {
        anchor_digest(suite.digests[kind, case.id] for kind in each for case in suite.cases(kind)) for each in parts
    }
    for each in fitted:
        if not isinstance(each, SteeringVector):
            check_disjoint({"the anchors": list(each), f"the suite {suite.name!r}": suite})
        elif each.metadata.anchors is not None and each.metadata.anchors.sha256 in digests:
            raise SampleError(
                f"{each!r} was fitted on the prompts of the suite {suite.name!r}",
                expected="prompts that are no anchors",
                fix="sk.evaluation.split(suite, shares) splits a suite",
            )


@dataclass(frozen=True)
class _Held:
    texts: Mapping[str, Collection[Sample]]
    clusters: frozenset[str]
    files: str

    @staticmethod
    def of(name: str, given: Suite | Sequence[Sample]) -> _Held:
        if isinstance(given, Suite):
            cases = list(given.named.values())
            clusters = frozenset(case.cluster for case in cases if case.cluster)
            files = given.revision.rpartition("sha256:")[2]
            return _Held(_by_text(case.sample for case in cases), clusters, files)
        expect_each(Sample, "a suite, or a list of samples", **{name: given})
        return _Held(_by_text(given), frozenset(), "")

    def shared(self, text: str, other: _Held) -> list[str]:
        """The prompts of a text that another set has too; pixels are read of such texts alone."""
        theirs = {_pixels(sample) for sample in other.texts[text]}
        return [
            str(sample.turns[-1][1])
            for sample in self.texts[text]
            if (mine := _pixels(sample)) in theirs or not mine or "" in theirs
        ]


def _by_text(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        text = "\n".join(f"{role}: {' '.join(folded(said).split())}" for role, said in sample.turns)
        groups.setdefault(text, []).append(sample)
    return groups


def _pixels(sample: Sample) -> str:
    """The digest of the images alone; empty where there are none."""
    return Sample("images", sample.images).digest() if sample.images else ""


def _cluster(case: Case, kind: Kind) -> str:
    return f"cluster {case.cluster}" if case.cluster else f"{kind} {case.id}"


def _only(suite: Suite, name: str, keys: set[tuple[Kind, str]]) -> Suite:
    groups = {kind: tuple(case for case in suite.cases(kind) if (kind, case.id) in keys) for kind in KINDS}
    return replace(suite, name=f"{suite.name}, {name}", **groups)
