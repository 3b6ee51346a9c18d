"""What beyond probabilities and scores is wanted of an image: nobody pays for what nobody asked for."""

from typing import NamedTuple


class Wanted(NamedTuple):
    """`a | b` is what either wants."""

    embedding: bool = False
    heat_map: bool = False

    def __or__(self, other: "Wanted") -> "Wanted":
        if other is self:
            return self
        return Wanted(self.embedding or other.embedding, self.heat_map or other.heat_map)


NOTHING = Wanted()
