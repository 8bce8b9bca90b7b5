from .dataloader import DataLoader
from .dataset import IterableDataset


def get_worker_info():
    """`None`: items are made in the process that asks for them."""
    return None
