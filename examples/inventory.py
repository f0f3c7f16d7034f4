"""A small stock list. Five pieces were taken out; a mark stands where each was.

The model in the box is small (19 million parameters). It fills these, which are ordinary, and were chosen as ones that it
fills; in strangers' code one answer in six is right, and of those that it is sure of more than half (its card says how that
was measured).

    codegen2 infill examples/inventory.py --mark
"""


class Item:
    """One kind of thing on the shelf."""

    def __init__(self, name, price, quantity=0):
        self.name = name
        self.price = price
        self.quantity = quantity

    def __repr__(self):
        return "Item(%r, %r, %r)" % (self.name, self.price, self.quantity)

    def __eq__(self, other):
        if not isinstance(other, Item):
            return NotImplemented
        return self.name == other.name


class Inventory:
    """All items, by name."""

    def __init__(self):
        self._items = {}

    def __len__(self):
        return len(self._items)

    def __iter__(self):
        return iter(self._items.values())

    def __contains__(self, name):
        return name in self._items

    def __getitem__(self, name):
        return <FILL>

    def add(self, item):
        if item.name in <FILL>:
            raise ValueError("item %r already exists" % item.name)
        self._items[item.name] = item

    def remove(self, name):
        if name not in <FILL>:
            raise KeyError(name)
        del <FILL>

    def get(self, name, default=None):
        return self._items.get(name, default)

    def total(self):
        total = 0
        for item in self._items.values():
            total += item.price * item.quantity
        return <FILL>
