"""wn_relation: pairs of WordNet nouns and how they are related."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from .archives import Archives
from .rows import Row, Splits, clean, row_key
from .sources import Built

__all__ = ["WordNet", "wn_relation"]

Key = tuple[str, str]
"""Part of speech and offset of a synset."""

SIZES = {"train": 14_000, "validation": 1_500, "test": 2_000}
PAIRS_A_PARENT = 12
HYPERNYM, HYPONYM, INSTANCE_HYPERNYM = "@", "~", "@i"


@dataclass(frozen=True)
class Synset:
    """One meaning: the words for it, its definition, and pointers ``(symbol, key)`` to others."""

    lexicographer_file: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, Key], ...]
    definition: str


class WordNet:
    """Nouns and verbs of a WordNet database, parsed from its ``data.*`` files."""

    def __init__(self, archives: Archives) -> None:
        self.synsets: dict[Key, Synset] = {}
        for part, name in (("n", "data.noun"), ("v", "data.verb")):
            for line in archives.read("wordnet", f"dict/{name}").decode("utf-8").split("\n"):
                # The licence at the head of the file is indented.
                if line and not line.startswith(" "):
                    self._parse(part, line)

    def _parse(self, part: str, line: str) -> None:
        head, _, gloss = line.partition("|")
        fields = head.split()
        count = int(fields[3], 16)
        at = 4 + 2 * count
        pointers = tuple(
            (fields[at + 1 + 4 * k], (fields[at + 3 + 4 * k], fields[at + 2 + 4 * k])) for k in range(int(fields[at]))
        )
        definition = re.split(r';\s*"|^"', gloss.strip())[0].strip().rstrip(";")
        words = tuple(fields[4 + 2 * k] for k in range(count))
        self.synsets[part, fields[0]] = Synset(int(fields[1]), words, pointers, definition)

    def to(self, key: Key, *symbols: str) -> list[Key]:
        """Synsets that ``key`` points to by one of the symbols."""
        return [target for symbol, target in self.synsets[key].pointers if symbol in symbols and target in self.synsets]

    def ancestors(self, key: Key) -> set[Key]:
        """Every synset above ``key``."""
        seen: set[Key] = set()
        todo = [key]
        while todo:
            for above in self.to(todo.pop(), HYPERNYM, INSTANCE_HYPERNYM):
                if above not in seen:
                    seen.add(above)
                    todo.append(above)
        return seen

    def show(self, key: Key) -> str:
        """``term: definition``."""
        synset = self.synsets[key]
        return clean(f"{synset.words[0].replace('_', ' ')}: {synset.definition}", 250)


def wn_relation(archives: Archives, rng: random.Random) -> Built:
    """``(A, B)``: 0 B is A's hypernym, 1 B is A's co-hyponym, 2 neither (same lexicographer file).

    B always has hyponyms of its own, and the Bs of class 2 are drawn from the same pool as those of class 0, so that B
    alone says little. Split by parent.
    """
    net = WordNet(archives)
    families = _families(net)
    pool: dict[int, list[Key]] = defaultdict(list)
    for _, parent, _ in families:
        pool[net.synsets[parent].lexicographer_file].append(parent)
    parents = sorted({parent for _, parent, _ in families})
    rng.shuffle(parents)
    validation, test = int(0.12 * len(parents)), int(0.27 * len(parents))
    place = {p: "validation" if i < validation else "test" if i < test else "train" for i, p in enumerate(parents)}
    rng.shuffle(families)
    splits: Splits = {"train": [], "validation": [], "test": []}
    from_parent: Counter[Key] = Counter()
    used: set[str] = set()
    for child, parent, siblings in families:
        part = place[parent]
        if len(splits[part]) >= SIZES[part] or from_parent[parent] >= PAIRS_A_PARENT:
            continue
        label = len(splits[part]) % 3
        if label == 0:
            other: Key | None = parent
        elif label == 1:
            other = rng.choice(siblings)
        else:
            other = _unrelated(net, child, siblings, pool[net.synsets[parent].lexicographer_file], rng)
        if other is None:
            continue
        row: Row = {"text": net.show(child), "text_pair": net.show(other), "label": label}
        if row_key(row) in used:
            continue
        used.add(row_key(row))
        from_parent[parent] += 1
        splits[part].append(row)
    for rows in splits.values():
        rng.shuffle(rows)
    return splits, 0, None


def _families(net: WordNet) -> list[tuple[Key, Key, list[Key]]]:
    """(child, parent, siblings of the child that have hyponyms) of every noun that has all three."""
    inner = {key for key in net.synsets if key[0] == "n" and net.to(key, HYPONYM)}
    families = []
    for child in sorted(net.synsets):
        if child[0] != "n" or not net.synsets[child].definition:
            continue
        above = sorted(parent for parent in net.to(child, HYPERNYM) if parent in inner)
        if not above:
            continue
        siblings = sorted(key for key in net.to(above[0], HYPONYM) if key != child and key in inner)
        if siblings:
            families.append((child, above[0], siblings))
    return families


def _unrelated(net: WordNet, child: Key, siblings: list[Key], pool: list[Key], rng: random.Random) -> Key | None:
    above = net.ancestors(child)
    parents = set(net.to(child, HYPERNYM))
    for _ in range(50):
        other = rng.choice(pool)
        if (
            other != child
            and other not in above
            and child not in net.ancestors(other)
            and other not in siblings
            and not set(net.to(other, HYPERNYM)) & parents
        ):
            return other
    return None
