"""Single items of a data set, in order."""

from typing import Generic, TypeVar

Item = TypeVar("Item")


class Generator:
    """Takes a seed; nothing is drawn, because nothing is shuffled."""

    def manual_seed(self, seed):
        self.seed = seed
        return self


class IterableDataset(Generic[Item]):
    pass


class DataLoader(Generic[Item]):
    """Items in order, one in a batch."""

    def __init__(self, dataset, batch_size=1, shuffle=False, collate_fn=None, num_workers=0, prefetch_factor=None, generator=None):
        if batch_size != 1 or shuffle or num_workers:
            raise NotImplementedError("this stand-in for torch loads single items in order, without workers")
        self.dataset, self.collate_fn = dataset, collate_fn

    def __iter__(self):
        return (self.collate_fn([item]) for item in self.dataset)
