"""`EarlierStates`: what was cached at the entries that a run had before, from which the states further up are computed.

When the entry rises, the layers between the old one and the new one stand still too, so that the states at the new one follow
from those at the old one by running these layers alone. That happens where an example is seen again; its older states are
dropped then, so that one state an example is held, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from layercard.prefix.store import ActivationStore


class EarlierStates:
    """Hidden states by content key at layers below the entry; an example is in one of the stores at most.

    `stores` are pairs of a layer and what was cached at its input, which belongs to this value from then on.
    """

    def __init__(self, stores: Sequence[tuple[int, ActivationStore]] = ()) -> None:
        self.stores = tuple((layer, store) for layer, store in stores if len(store) > 0)
        for _, store in stores:
            if len(store) == 0:
                store.close()

    @property
    def beside(self) -> list[ActivationStore]:
        """The stores alone."""
        return [store for _, store in self.stores]

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of hidden states held in memory."""
        return sum(store.bytes_in_memory for store in self.beside)

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all files."""
        return sum(store.bytes_on_disk for store in self.beside)

    def get(self, key: bytes) -> tuple[int, Tensor] | None:
        """Return the layer at whose input an example's states are held, and those (tokens, width) on CPU; None without any."""
        for layer, store in self.stores:
            hidden = store.get(key)
            if hidden is not None:
                return layer, hidden
        return None

    def move(self, key: bytes, hidden: Tensor, store: ActivationStore) -> None:
        """Keep `hidden` in `store`, and drop what is held here of this example; it stays where nothing more can be kept."""
        if any(held.in_memory(key) for held in self.beside):
            self.drop(key)  # first, since the new states take its place
        if store.put(key, hidden):
            self.drop(key)

    def drop(self, key: bytes) -> None:
        """Forget one example."""
        for store in self.beside:
            store.drop(key)

    def clear(self) -> None:
        """Forget everything and remove the files."""
        for store in self.beside:
            store.clear()

    def close(self) -> None:
        """Remove every file, and directories in which nothing else is."""
        for store in self.beside:
            store.close()
