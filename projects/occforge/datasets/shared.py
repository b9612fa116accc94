"""Integers that a data set and its worker processes share."""

import torch


class SharedIntegers:
    """A row of int64 numbers in shared memory.

    A plain attribute that is changed after persistent workers have started never changes in their copies of the data
    set; these do. A deep copy or an unpickled copy gets numbers of its own, shared with the workers that it starts.
    (torch's own copy of a shared tensor is not shared, and mmengine's Runner copies every data set that it is given.)
    """

    def __init__(self, values):
        self.values = torch.as_tensor(values, dtype=torch.int64).clone().share_memory_()

    def __deepcopy__(self, memo):
        return SharedIntegers(self.values)

    def __setstate__(self, state):
        # a spawned worker receives the shared memory itself, a plain pickle a copy
        values = state['values']
        self.values = values if values.is_shared() else values.share_memory_()

    def __getitem__(self, index):
        return int(self.values[index])

    def __setitem__(self, index, value):
        self.values[index] = int(value)

    def __len__(self):
        return len(self.values)

    def nonzero(self) -> list[int]:
        """Indices of the numbers that are not zero."""
        return torch.nonzero(self.values).flatten().tolist()
