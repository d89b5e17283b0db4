"""torch where it is installed; everything here works without it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset, IterableDataset
else:
    try:
        import torch
        from torch.utils.data import Dataset, IterableDataset
    except ImportError:
        torch = None

        class Dataset:
            """What `torch.utils.data.Dataset` would be."""

            def __class_getitem__(cls, item: Any) -> Any:
                return cls

        class IterableDataset(Dataset):
            """What `torch.utils.data.IterableDataset` would be."""


HAS_TORCH: bool = torch is not None


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor."""
    return HAS_TORCH and isinstance(value, torch.Tensor)


__all__ = ["HAS_TORCH", "Dataset", "IterableDataset", "is_tensor", "torch"]
