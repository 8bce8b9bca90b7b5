"""What guidellm needs of PyTorch: a loop over a data set. The package itself has four gigabytes.

Only a client of the tests sees this, and only the part of it that makes prompts.
"""


class Generator:
    def manual_seed(self, seed):
        self.seed = seed
        return self
