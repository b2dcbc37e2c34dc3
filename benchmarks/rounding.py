"""Numbers as the files of results hold them."""


def rounded(value, digits=4):
    """Returns a structure with no more digits than mean something."""
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
