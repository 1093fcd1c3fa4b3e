"""To come."""


def __getattr__(name):
    raise NotImplementedError(name)
